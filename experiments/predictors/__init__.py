"""Problems and optimizers of the studies of predictors, on full and small batches."""
