"""Problems and optimizers of the study of predictors on full batches."""
