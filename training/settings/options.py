"""Every flag of the training program, declared once.

A line such as ``width: int = flag(16, "...", low=1)`` is a flag's type, default, help
and range. The settings of methods, optimizers and schedules are declared with them.
"""

import dataclasses
from typing import Literal, TypeVar

from models import NETWORKS
from training.data.registry import DATASETS
from training.settings.averages import AVERAGES
from training.settings.flags import Part, flag
from training.settings.methods import METHODS
from training.settings.optimizers import OPTIMIZERS, usual_rates
from training.settings.plan import listed_epochs
from training.settings.presets import PRESETS
from training.settings.schedules import SCHEDULES
from training.weights.files import digest, start_digest
from training.weights.fitting import WITH_NAMES

IN_BLOCKS = tuple(name for name, of in NETWORKS.items() if of.has_blocks)
_WITH_DROPOUT = tuple(name for name, of in NETWORKS.items() if of.has_dropout)
_CASCADE = ("dense", "conv")


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Images to train on."""

    dataset: str = flag(
        "digits",
        f"{', '.join(DATASETS)}; the name of a set of tensorflow-datasets that is "
        "prepared in --data-dir; an .npz file; or a folder with a sub-folder for each "
        "class. A path has a separator (./flowers) or ends in .npz.",
    )
    data_dir: str | None = flag(
        None,
        "Directory of prepared tensorflow-datasets sets. Unset: TFDS_DATA_DIR, or "
        "~/tensorflow_datasets.",
        identity=False,
    )
    image_size: int | None = flag(
        None,
        "Scale and crop all images to squares of this side, in pixels.",
        low=1,
        below=10_000,
    )
    validation_fraction: float = flag(
        0.2,
        "Validation split: part of the training set that is held out to choose the "
        "best epoch. With 0 the last epoch is taken.",
        low=0,
        below=1,
    )
    train_fraction: float = flag(
        1.0,
        "Part of the remaining training set to train on, the same for every class.",
        above=0,
        high=1,
    )
    split_seed: int = flag(
        0, "Seed of these splits, independent of --seed.", low=0, below=2**32
    )
    split_per_seed: bool = flag(
        False, "Draw the validation split from --seed instead: one split a seed."
    )
    augment: bool = flag(
        False,
        "Data augmentation: random crops (padding of 1/8 of the side) and, except for "
        "digits, horizontal flips.",
    )


@dataclasses.dataclass(frozen=True)
class NetworkFlags:
    """The network."""

    model: str = flag("resnet18", "The network.", choices=NETWORKS)
    width: int = flag(
        16,
        "Channels of the first stage; all other channel counts scale with it. The "
        "papers' networks have 64.",
        low=1,
        below=10_000,
    )
    stem: Literal["cifar", "imagenet"] = flag("cifar", "First layers.")
    head: Literal["mlp", "linear"] = flag(
        lambda c: "mlp" if NETWORKS[c.model].has_mlp_head else "linear",
        "Last layers. Unset: mlp for VGG, linear for the others.",
    )
    dropout: float | None = flag(
        None,
        "Dropout rate. Unset: the network's own, which is 0.5 for VGG's mlp head, 0.4 "
        "for GoogLeNet, 0.2 for EfficientNet and 0 for ViT.",
        only=("model", _WITH_DROPOUT),
        low=0,
        below=1,
    )
    norm: Literal["batch", "layer", "none"] | None = flag(
        "batch",
        "Normalisation: batch, layer (of the channels), or none.",
        only=("model", IN_BLOCKS),
    )
    kernel_init: Literal["pytorch", "he"] | None = flag(
        "pytorch",
        "Initialisation: pytorch, whose default shrinks the signal from layer to layer "
        "where nothing normalises it; or he, which keeps its size (arXiv 1502.01852).",
        only=("model", IN_BLOCKS),
    )
    initial_weights: str | None = flag(
        None,
        "Pretrained weights to start from: an .npz or .safetensors file with "
        "torchvision's names. The head starts at random if the number of classes "
        "differs, and the stem's kernel if its size does.",
        only=("model", WITH_NAMES),
    )
    initial_weights_sha256: str | None = flag(
        lambda c: c.initial_weights and digest(c.initial_weights),
        "The SHA-256 digest that the file must have. Unset: the one that it has.",
        only=("model", WITH_NAMES),
    )
    start_from: str | None = flag(
        None,
        "A run to start from: its work directory, for the variables of its best epoch; "
        "or one of its files, such as average.msgpack or a checkpoint, for the last "
        "ones. Parameters and batch statistics are taken, the optimizer's state is "
        "not. The head starts at random if the number of classes differs.",
    )
    start_from_sha256: str | None = flag(
        lambda c: c.start_from and start_digest(c.start_from),
        "The SHA-256 digest that its variables must have. Unset: the one that they "
        "have.",
    )


@dataclasses.dataclass(frozen=True)
class CascadeFlags:
    """Training block by block, instead of end to end."""

    cascade: str | None = flag(
        None,
        "Deep cascade learning: train the network's blocks one after the other, each "
        "in a stage with a new head and with the blocks before it frozen. The head, in "
        "place of --head: dense, two hidden layers with dropout; or conv, a "
        "convolution and a linear layer. Unset: end to end.",
        choices=_CASCADE,
    )
    cascade_epochs: int | None = flag(
        10, "Epochs of the first stage.", only=("cascade", _CASCADE), low=1
    )
    cascade_extra_epochs: int | None = flag(
        0,
        "Epochs that each stage has more than the one before.",
        only=("cascade", _CASCADE),
        low=0,
    )
    cascade_finetune: int | None = flag(
        0,
        "Epochs of a last stage, which trains all blocks and the last head.",
        only=("cascade", _CASCADE),
        low=0,
    )
    cascade_stage: int | None = flag(
        None, "The stage that a run is.", only=("cascade", _CASCADE), hidden=True
    )


@dataclasses.dataclass(frozen=True)
class MethodFlags:
    """The method under study, added to the optimizer."""

    method: str = flag(
        "plp",
        "none adds nothing (and sgd is its old name). plp (parameter linear "
        "prediction), lookahead, average (of the window), anderson (Anderson "
        "acceleration), ema-nesterov and outer-nesterov follow the optimizer; amplify "
        "(layer-wise gradient amplification) precedes it; noise-adaptive (layer-wise "
        "learning rates) scales its updates.",
        parts=METHODS,
    )
    strategy: str | None = flag(
        lambda c: "paper" if c.amplify_select else None,
        "Learning rate and amplification by epoch: paper (VGG-19 and ResNet-18/34), "
        "paper-deep (ResNet-50/101), both scaled to --epochs, with the usual rate of "
        "the optimizer in the place of SGD's 0.1; or a list such as "
        '"[(10, 0.1, 0, 1), (20, 0.1, 1, 2.0)]" of (end epoch, learning rate, '
        "amplify?, factor). Replaces --schedule and --learning-rate. Unset: paper for "
        "methods that amplify.",
    )


@dataclasses.dataclass(frozen=True)
class OptimizerFlags:
    """Optimizer and learning rate."""

    optimizer: str = flag("sgd", "The optimizer.", parts=OPTIMIZERS)
    learning_rate: float | None = flag(
        lambda c: OPTIMIZERS[c.optimizer].usual_rate,
        f"Peak learning rate; the lower bound of a cyclic schedule. Unset: "
        f"{usual_rates()}. Several rates are trained one after the other, and compared "
        f"in a table.",
        only=("strategy", (None,)),
        alias="--lr",
        above=0,
        several=True,
    )
    weight_decay: float = flag(
        5e-4,
        "Weight decay: an L2 coefficient, added to the gradient (for lars before its "
        "ratio of norms); decoupled for adamw.",
        low=0,
    )
    l1: float = flag(
        0.0,
        "L1 regularisation: this multiple of each parameter's sign is added to the "
        "gradient, in addition to --weight-decay.",
        low=0,
    )
    clip_norm: float | None = flag(
        None,
        "Gradient clipping by global norm: larger gradients are scaled down to it, "
        "after amplification and before decay.",
        above=0,
    )
    clip_value: float | None = flag(
        None,
        "Gradient clipping by value: each entry to this magnitude, in the same place.",
        above=0,
    )
    schedule: str | None = flag(
        lambda c: "constant" if c.cascade else "cosine",
        "Learning rate after the warm-up: constant; cyclic between --learning-rate and "
        "--max-learning-rate; step, times 0.2 at 30, 60 and 80 %; cosine; onecycle, up "
        "from a 25th of --learning-rate in 30 % of the run and down to almost 0, "
        "without a warm-up; or plateau, divided by ten whenever the validation loss "
        "has not fallen for --plateau-patience epochs. Unset: cosine; with --cascade "
        "constant, as in stages of a few epochs a falling rate ends before a block has "
        "learned.",
        only=("strategy", (None,)),
        parts=SCHEDULES,
    )


@dataclasses.dataclass(frozen=True)
class AverageFlags:
    """The average of the parameters, and the statistics that evaluations use."""

    average: str = flag(
        "power",
        "Average of the parameters, evaluated after each epoch next to the last ones "
        "and kept in average.msgpack: power (at any step that of a decayed learning "
        "rate), ema (exponential moving average), mean, or none. Training itself does "
        "not change.",
        parts=AVERAGES,
    )
    precise_bn: int = flag(
        lambda c: 0 if c.average == "none" else 16,
        "Precise batch norm: before each evaluation compute the batch statistics again "
        "for the parameters that are evaluated, over this many training batches; 0 "
        "for the running statistics of training. Unset: 16 with an average, else 0.",
        low=0,
        below=1_000_000,
    )
    block_means: int | None = flag(
        None,
        "Checkpoint averaging: keep the mean parameters of each block of this many "
        "epochs in means/, for `python -m training merge`, which chooses a decay "
        "afterwards.",
        low=1,
    )


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Length, batches and arithmetic."""

    epochs: int = flag(
        lambda c: c.cascade_epochs or listed_epochs(c.strategy) or 30,
        "Passes over the training set; a partial last batch is dropped. Unset: 30, or "
        "the end of a listed --strategy; with --cascade see --cascade-epochs.",
        low=1,
    )
    max_steps: int | None = flag(
        None,
        "Stop after this many optimizer steps, in each stage of a cascade. Schedules "
        "still span --epochs.",
        low=1,
    )
    batch_size: int = flag(64, "Examples in a batch, over all devices.", low=1)
    batch_parts: int = flag(
        1,
        "Microbatches: compute each batch in this many parts, to save memory (not on a "
        "CPU, where the parts are unrolled). The step is that of the complete batch, "
        "except that batch normalisation sees one part at a time.",
        low=1,
    )
    batches_per_step: int = flag(
        1,
        "Gradient accumulation: average the gradients of this many batches before each "
        "optimizer step. Same memory, that many times fewer steps per epoch.",
        low=1,
    )
    label_smoothing: float = flag(
        0.0,
        "Label smoothing: part of the training target that is spread evenly over all "
        "classes.",
        low=0,
        below=1,
    )
    early_stopping: int | None = flag(
        None,
        "Early stopping: stop when the validation loss has not fallen for this many "
        "epochs.",
        low=1,
    )
    stop_accuracy: float | None = flag(
        None,
        "End the run, or the stage of a cascade, after an epoch with this training "
        "accuracy.",
        above=0,
        high=1,
    )
    precision: Literal["float32", "bfloat16", "float16", "float64"] = flag(
        "float32",
        "Data type of the network's arithmetic. Parameters are at least float32 (mixed "
        "precision). float16 comes with dynamic loss scaling.",
    )
    input: Literal["resident", "host"] = flag(
        "resident",
        "resident keeps the training images on the devices; host sends each batch, for "
        "sets that do not fit.",
    )
    pin_memory: bool = flag(
        True,
        "Pinned memory: send batches by way of page-locked memory, from which a "
        "transfer overlaps with the computation; not on a CPU, where there is none.",
        only=("input", ("host",)),
    )
    steps_per_call: int | None = flag(
        None,
        "Training steps in one call, as a loop on the devices. Unset: 1 on a CPU, "
        "where such a loop is slow, else a quarter of an epoch.",
        only=("input", ("resident",)),
        low=1,
    )
    test_each_epoch: bool = flag(
        False,
        "Also evaluate the test set after every epoch, for the curves. It is never "
        "used to choose anything.",
    )
    seed: int = flag(
        0,
        "Seed of initial parameters, order of examples, augmentation and dropout. "
        "Several seeds are trained one after the other.",
        low=0,
        below=2**32,
        several=True,
    )


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Where and how the run is kept."""

    workdir: str | None = flag(
        None,
        "Work directory. Unset: runs/DATASET-MODEL-METHOD-SEED, followed by a "
        "fingerprint of all other settings that are not the default.",
        identity=False,
    )
    overwrite: bool = flag(
        False, "Start again in a work directory that holds a run.", identity=False
    )
    lock: bool = flag(
        True,
        "Lock the work directory. --no-lock is for file systems without locks, where a "
        "second run in the same directory is not noticed.",
        identity=False,
    )
    resume: Literal["auto", "required", "never"] = flag(
        "auto",
        "What to do with a run that did not finish: auto resumes it from its last "
        "checkpoint; required fails if there is none; never refuses.",
        identity=False,
    )
    checkpoint_epochs: int = flag(
        1,
        "Epochs between checkpoints; 0 for one at the end only.",
        low=0,
        identity=False,
    )
    checkpoint_minutes: float = flag(
        15.0, "Minutes between checkpoints within an epoch.", above=0, identity=False
    )
    keep_checkpoints: int = flag(
        2, "How many of the newest checkpoints to keep.", low=1, identity=False
    )
    monitor_layers: bool = flag(
        False,
        "Record statistics of each layer over each epoch: norms of gradients, updates "
        "and parameters, and the signal-to-noise ratio of gradients; in metrics.jsonl, "
        "TensorBoard and layers.png. Needs one copy of the parameters more.",
    )
    on_nonfinite: Literal["stop", "skip"] = flag(
        "stop",
        "What to do when a loss, gradient or update is not finite: stop, or skip the "
        "step; after 25 skipped in a row the run stops.",
        identity=False,
    )
    draw: bool = flag(
        True,
        "Draw curves and the confusion matrix when the run has finished.",
        identity=False,
    )
    profile: bool = flag(
        False,
        "Write a trace of the second epoch, for TensorBoard or Perfetto.",
        identity=False,
    )
    cache_dir: str | None = flag(
        None,
        'Directory of compiled programs; "none" for none. Unset: JAX\'s setting, or '
        "~/.cache/plp_optax.",
        identity=False,
    )


@dataclasses.dataclass(frozen=True)
class ProcessesFlags:
    """Several hosts. All processes share the work directory."""

    coordinator_address: str | None = flag(
        None, "HOST:PORT of the first process.", identity=False
    )
    num_processes: int | None = flag(
        None, "Number of processes.", low=1, identity=False
    )
    process_id: int | None = flag(
        None,
        "This process, from 0. Process 0 writes the records.",
        low=0,
        identity=False,
    )
    distributed: bool = flag(
        False,
        "Train with all processes that the cluster (Slurm, a TPU pod, Kubernetes, MPI) "
        "has started, found by JAX.",
        identity=False,
    )


T = TypeVar("T", bound=Part)


# A flag may depend on those before it; a dataclass has its last base's fields first.
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    ProcessesFlags,
    RunFlags,
    TrainingFlags,
    AverageFlags,
    OptimizerFlags,
    MethodFlags,
    CascadeFlags,
    NetworkFlags,
    DataFlags,
):
    """A run's configuration; complete when made by :func:`resolve`."""

    # The settings of the method, the optimizer, the schedule and the average chosen.
    parts: tuple[Part, ...]

    def get(self, kind: type[T]) -> T | None:
        """The settings of a class, such as ``PLP``, if they are part of this run."""
        return next((part for part in self.parts if isinstance(part, kind)), None)

    @property
    def optimization(self) -> str:
        """Method and optimizer, as the screen and the titles of pictures say it."""
        if not METHODS[self.method]:
            return self.optimizer
        return f"{self.method} with {self.optimizer}"


# The groups of flags by their titles in --help, in order.
GROUPS = {
    group.__name__.removesuffix("Flags").lower(): group
    for group in reversed(Config.__bases__)
}


@dataclasses.dataclass(frozen=True)
class StartFlags:
    """Where to start from."""

    preset: str | None = flag(
        None,
        "A published protocol on CIFAR-100: plp-paper (arXiv 2310.10958), "
        "amplify-paper (arXiv 2305.18445), amplify-paper-deep (the same for "
        "ResNet-50/101), cascade-paper (on CIFAR-10), or accelerate-... (a review of "
        "acceleration techniques, with --dataset cifar10 as on that set; ...-plain "
        "without the techniques); or scratch-..., a common recipe from scratch for "
        "these networks. --show-config prints it; docs/protocols.md says what is "
        "published and what is assumed. Flags override it.",
        choices=PRESETS,
    )
    config: str | None = flag(None, "The config.json of a work directory.")
    show_config: bool = flag(
        False, "Print the complete configuration as JSON, and exit."
    )
