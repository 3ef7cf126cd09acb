"""Every flag of the training program, declared once.

A line such as ``plp_window: int | None = flag(3, "...", only=..., low=2)`` is a flag's
type, default, help, the choice under which it has a meaning, and its range.
"""

import dataclasses

from models import NETWORKS, WITH_DROPOUT
from training.engine.pretrained import WITH_NAMES, digest
from training.settings.flags import flag
from training.settings.presets import PRESETS
from training.settings.registry import DATASETS, METHODS
from training.settings.strategy import listed_epochs

VGG = ("vgg16", "vgg19")
_PLP = ("plp", "amplify+plp")
_CASCADE = ("dense", "conv")
_AMPLIFY = ("amplify", "amplify+plp")
_LEARNING_RATES = {"sgd": 0.05, "nesterov": 0.05, "adagrad": 0.01, "adadelta": 1.0}


@dataclasses.dataclass(frozen=True)
class Data:
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
        "Part of the training set that is held out to choose the best epoch. With 0 "
        "the last epoch is taken.",
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
        0, "Seed of these choices, independent of --seed.", low=0, below=2**32
    )
    split_per_seed: bool = flag(
        False, "Draw the validation split from --seed instead: one split a seed."
    )
    augment: bool = flag(
        False,
        "Random crops (padding of 1/8 of the side) and, except for digits, horizontal "
        "flips.",
    )


@dataclasses.dataclass(frozen=True)
class Network:
    """The network."""

    model: str = flag("resnet18", "The network.", choices=NETWORKS)
    width: int = flag(
        16,
        "Channels of the first stage; all other channel counts scale with it. The "
        "papers' networks have 64.",
        low=1,
        below=10_000,
    )
    stem: str = flag("cifar", "First layers.", choices=("cifar", "imagenet"))
    head: str = flag(
        lambda c: "mlp" if c.model in VGG else "linear",
        "Last layers. Unset: mlp for VGG, linear for the others.",
        choices=("mlp", "linear"),
    )
    dropout: float | None = flag(
        None,
        "Part of the units dropped in training. Unset: the network's own, which is 0.5 "
        "for VGG's mlp head, 0.4 for GoogLeNet, 0.2 for EfficientNet and 0 for ViT.",
        only=("model", WITH_DROPOUT),
        low=0,
        below=1,
    )
    initial_weights: str | None = flag(
        None,
        "Start from the weights in this .npz or .safetensors file, which has "
        "torchvision's names. The head starts at random if the number of classes "
        "differs, and the stem's kernel if its size does.",
        only=("model", WITH_NAMES),
    )
    initial_weights_sha256: str | None = flag(
        lambda c: c.initial_weights and digest(c.initial_weights),
        "The SHA-256 digest that the file must have. Unset: the one that it has.",
        only=("model", WITH_NAMES),
    )


@dataclasses.dataclass(frozen=True)
class Cascade:
    """Training block by block, instead of end to end."""

    cascade: str | None = flag(
        None,
        "Train the network's blocks one after the other, each in a stage with a new "
        "head and with the blocks before it frozen (deep cascade learning). The head, "
        "in place of --head: dense, two hidden layers with dropout; or conv, a "
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
class Method:
    """The method under study, added to the optimizer."""

    method: str = flag(
        "plp",
        "sgd adds nothing. plp (parameter linear prediction), lookahead, average (of "
        "the window), adaptive-window (Anderson acceleration), ema-nesterov, "
        "outer-nesterov and tail-average follow the optimizer; amplify (layer-wise "
        "gradient amplification) precedes it.",
        choices=METHODS,
    )
    plp_step: float | None = flag(
        1.0, "How far to predict, in optimizer steps.", only=("method", _PLP)
    )
    plp_window: int | None = flag(
        3,
        "Number of parameter values in the window.",
        only=("method", (*_PLP, "average")),
        low=2,
        below=10_000,
    )
    plp_period: int | None = flag(
        lambda c: max(4, c.plp_window),
        "Optimizer steps in a cycle. Unset: 4, or --plp-window if that is larger.",
        only=("method", (*_PLP, "average")),
        low=1,
    )
    plp_fit: str | None = flag(
        "midpoint",
        "The line through the window. The paper's is midpoint.",
        only=("method", _PLP),
        choices=("midpoint", "least_squares"),
    )
    lookahead_steps: int | None = flag(
        5,
        "Optimizer steps between synchronisations.",
        only=("method", ("lookahead",)),
        low=1,
        below=10_000,
    )
    lookahead_alpha: float | None = flag(
        0.5, "Step size of the slow weights.", only=("method", ("lookahead",))
    )
    adaptive_window: int | None = flag(
        10,
        "Number of updates that are combined.",
        only=("method", ("adaptive-window",)),
        low=2,
        below=10_000,
    )
    adaptive_period: int | None = flag(
        None,
        "Optimizer steps in a cycle that ends in one jump. Unset: a jump at every "
        "step, for full batches on plain gradient descent.",
        only=("method", ("adaptive-window",)),
        low=2,
    )
    adaptive_min_signal: float | None = flag(
        None,
        "No jump where the mean product of different updates is a smaller part of "
        "their mean square: about 0 for noise, 1 for steady updates.",
        only=("method", ("adaptive-window",)),
    )
    extrapolation: float | None = flag(
        0.5,
        "How far to go along the average update, in multiples of it; falls linearly "
        "to 0 by the end of the run.",
        only=("method", ("ema-nesterov",)),
        low=0,
        below=1,
    )
    extrapolation_decay: float | None = flag(
        0.95,
        "Decay of the average update.",
        only=("method", ("ema-nesterov",)),
        low=0,
        below=1,
    )
    outer_rate: float | None = flag(
        0.7,
        "Learning rate of the outer Nesterov momentum.",
        only=("method", ("outer-nesterov",)),
        above=0,
    )
    outer_momentum: float | None = flag(
        0.9,
        "Momentum over cycles.",
        only=("method", ("outer-nesterov",)),
        low=0,
        below=1,
    )
    outer_period: int | None = flag(
        20,
        "Optimizer steps in a cycle.",
        only=("method", ("outer-nesterov",)),
        low=1,
    )
    tail_start: float | None = flag(
        0.75,
        "Part of the run after which parameters are averaged.",
        only=("method", ("tail-average",)),
        low=0,
        below=1,
    )
    amplify_select: str | None = flag(
        "scores",
        "Layers to amplify: scores selects those that stand out; random, all, and "
        "layer names separated by commas are controls.",
        only=("method", _AMPLIFY),
    )
    amplify_measure: str | None = flag(
        "g2",
        "How the consistency of a layer's gradients is measured.",
        only=("method", _AMPLIFY),
        choices=("g1", "g1_per_weight", "g2"),
    )
    amplify_threshold: float | None = flag(
        1.5,
        "Standard deviations by which a layer must stand out.",
        only=("amplify_select", ("scores",)),
        low=0,
    )
    amplify_two_sided: bool = flag(
        False,
        "Also amplify layers whose score is that much below the mean.",
        only=("amplify_select", ("scores",)),
    )
    amplify_ratio: float | None = flag(
        None,
        "Part of the layers to draw.",
        only=("amplify_select", ("random",)),
        above=0,
        high=1,
    )
    amplify_factor: float | None = flag(
        None,
        "What gradients are multiplied by. Unset: the strategy's factor, which is 2 in "
        "the named strategies (an assumption: the paper does not publish it).",
        only=("method", _AMPLIFY),
        above=0,
    )
    amplify_layers: str | None = flag(
        "kernels",
        "What counts as a layer: modules with a kernel, or all modules with "
        "parameters.",
        only=("method", _AMPLIFY),
        choices=("kernels", "modules"),
    )
    amplify_reselect_every: int | None = flag(
        None,
        "Select again after this many amplified epochs.",
        only=("method", _AMPLIFY),
        low=1,
    )
    amplify_propagate: bool = flag(
        False,
        "Amplify inside back-propagation, so that the layers before an amplified one "
        "are amplified too.",
        only=("method", _AMPLIFY),
    )
    strategy: str | None = flag(
        lambda c: "paper" if c.method in _AMPLIFY else None,
        "Learning rate and amplification by epoch: paper (VGG-19 and ResNet-18/34), "
        "paper-deep (ResNet-50/101), both scaled to --epochs, or a list such as "
        '"[(10, 0.1, 0, 1), (20, 0.1, 1, 2.0)]" of (end epoch, learning rate, '
        "amplify?, factor). Replaces --schedule and --learning-rate. Unset: paper for "
        "methods that amplify.",
    )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Optimizer and learning rate."""

    optimizer: str = flag(
        "sgd",
        "The optimizer.",
        choices=(
            *("sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta"),
        ),
    )
    learning_rate: float | None = flag(
        lambda c: _LEARNING_RATES.get(c.optimizer, 0.001),
        "Peak learning rate; the lower bound of a cyclic schedule. Unset: 0.05 for sgd "
        "and nesterov, 0.01 for adagrad, 1 for adadelta, else 0.001.",
        only=("strategy", (None,)),
        alias="--lr",
        above=0,
    )
    momentum: float | None = flag(
        lambda c: 0.0 if c.optimizer == "rmsprop" else 0.9,
        "Momentum coefficient. Unset: 0.9, for rmsprop 0.",
        only=("optimizer", ("sgd", "nesterov", "rmsprop")),
        low=0,
        below=1,
    )
    weight_decay: float = flag(
        5e-4, "L2 coefficient, added to the gradient; decoupled for adamw.", low=0
    )
    l1: float = flag(
        0.0,
        "L1 coefficient: its multiple of each parameter's sign is added to the "
        "gradient, besides --weight-decay.",
        low=0,
    )
    clip_norm: float | None = flag(
        None,
        "Scale gradients down to this global norm, after amplification and before "
        "decay.",
        above=0,
    )
    clip_value: float | None = flag(
        None, "Clip each entry of the gradient to this magnitude, likewise.", above=0
    )
    schedule: str | None = flag(
        "cosine",
        "Learning rate after the warm-up: constant; cyclic between --learning-rate and "
        "--max-learning-rate; step, times 0.2 at 30, 60 and 80 %; cosine; onecycle, up "
        "from a 25th of --learning-rate in 30 % of the run and down to almost 0, "
        "without a warm-up; or plateau, divided by ten whenever the validation loss "
        "has not fallen for --plateau-patience epochs.",
        only=("strategy", (None,)),
        choices=("constant", "cyclic", "step", "cosine", "onecycle", "plateau"),
    )
    plateau_patience: int | None = flag(
        10,
        "Epochs without a lower validation loss before the rate is divided by ten.",
        only=("schedule", ("plateau",)),
        low=1,
    )
    max_learning_rate: float | None = flag(
        lambda c: 2 * c.learning_rate,
        "Peak of the cyclic schedule. Unset: twice --learning-rate.",
        only=("schedule", ("cyclic",)),
        above=0,
    )
    cycle_steps: int | None = flag(
        2000,
        "Steps of half a cycle, from the lower bound to the peak.",
        only=("schedule", ("cyclic",)),
        low=1,
        below=2**30,  # a cycle is counted in int32
    )
    cycle_momentum: bool = flag(
        False,
        "Lower the momentum by 0.1 while the cyclic rate rises to its peak, as "
        "PyTorch's CyclicLR does by default (0.9 to 0.8).",
        only=("schedule", ("cyclic",)),
    )
    warmup_epochs: float | None = flag(
        1.0,
        "Epochs over which the learning rate rises linearly from 0.",
        only=("schedule", ("constant", "cyclic", "step", "cosine", "plateau")),
        low=0,
        below=2**31,
    )


@dataclasses.dataclass(frozen=True)
class Training:
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
        "Compute each batch in this many parts, to save memory (not on a CPU, where "
        "the parts are unrolled). The step stays that of the whole batch, except that "
        "batch normalisation sees one part at a time.",
        low=1,
    )
    batches_per_step: int = flag(
        1,
        "Average the gradients of this many batches before each optimizer step, as if "
        "the batch were so much larger, in the memory of one. An epoch has so many "
        "fewer steps.",
        low=1,
    )
    label_smoothing: float = flag(
        0.0,
        "Part of the training target that is spread evenly over all classes.",
        low=0,
        below=1,
    )
    ema: float | None = flag(
        None,
        "Decay of a moving average of the network's variables, such as 0.999. It is "
        "evaluated besides them, and kept in average.msgpack.",
        above=0,
        below=1,
    )
    early_stopping: int | None = flag(
        None,
        "Stop when the validation loss has not fallen for this many epochs.",
        low=1,
    )
    precision: str = flag(
        "float32",
        "Type of the network's arithmetic. Parameters are at least float32. float16 "
        "comes with dynamic loss scaling.",
        choices=("float32", "bfloat16", "float16", "float64"),
    )
    input: str = flag(
        "resident",
        "resident keeps the training images on the devices; host sends each batch, for "
        "sets that do not fit.",
        choices=("resident", "host"),
    )
    pin_memory: bool = flag(
        True,
        "Send batches by way of page-locked memory, from which a transfer overlaps "
        "with the computation; not on a CPU, where nothing is transferred.",
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
class Run:
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
    resume: str = flag(
        "auto",
        "What to do with a run that did not finish: auto resumes it from its last "
        "checkpoint; required fails if there is none; never refuses.",
        choices=("auto", "required", "never"),
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
    on_nonfinite: str = flag(
        "stop",
        "What to do when a loss, gradient or update is not finite: stop, or skip the "
        "step; after 25 skipped in a row the run stops.",
        choices=("stop", "skip"),
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
class Processes:
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


# The groups in the order of --help, in which a flag may depend on those before it.
GROUPS = (Data, Network, Cascade, Method, Optimizer, Training, Run, Processes)


# A dataclass has its last base's fields first.
@dataclasses.dataclass(frozen=True)
class Config(Processes, Run, Training, Optimizer, Method, Cascade, Network, Data):
    """A run's configuration; complete when made by :func:`resolve`."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where to start from."""

    preset: str | None = flag(
        None,
        "A published protocol on CIFAR-100: plp-paper (arXiv 2310.10958), "
        "amplify-paper (arXiv 2305.18445), amplify-paper-deep (the same for "
        "ResNet-50/101), or accelerate-... (a review of acceleration techniques); or "
        "scratch-..., a common recipe from scratch for these networks. --show-config "
        "prints it; docs/protocols.md says what is published and what is assumed. "
        "Flags override it.",
        choices=PRESETS,
    )
    config: str | None = flag(None, "The config.json of a work directory.")
    show_config: bool = flag(
        False, "Print the complete configuration as JSON, and exit."
    )
