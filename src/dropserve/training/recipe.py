"""Recipes: what to train, on what, and how, in one TOML file.

The classes below are the whole vocabulary. ``description`` says what a key allows; an error quotes it.
Nothing here reads data or builds a model: see :mod:`dropserve.training.recipe_file` for loading and checking.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
)

from dropserve.errors import UsageError
from dropserve.store import check_name
from dropserve.training.recipe_columns import ColumnKeys
from dropserve.training.recipe_optimiser import OptimiserTable, TunedTable

MAX_SEED = 2**32 - 1  # numpy's limit

Seed = Annotated[int, Field(ge=0, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED}")]
Rows = Annotated[int, Field(ge=10, le=10_000_000, description="a whole number of rows, 10 or more")]
Count = Annotated[int, Field(ge=1, description="a whole number, 1 or more")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelTable(_Table):
    """``[model]``: any ``nn.Module``, wherever it lives.

    Attributes:
        spec: key ``class``: ``file.py:Class`` (relative to the recipe) or ``package.module:Class``.
        arguments: keyword arguments of its constructor.
    """

    spec: str = Field(
        alias="class",
        pattern=r"^[^:]+:[A-Za-z_]\w*$",
        description="file.py:Class (relative to this recipe) or package.module:Class",
    )
    arguments: dict[str, JsonValue] = Field(
        {},
        description="a table of the constructor's arguments: finite numbers, texts, booleans, lists, tables",
    )


class _DataTable(_Table):
    scaling: Literal["feature", "global", "none"] = Field(
        "feature",
        description='"feature" (each to mean 0, deviation 1), "global" (one mean and deviation for all, '
        'right for pixels) or "none"',
    )


class BundledData(_DataTable):
    """A data set that comes with scikit-learn, so nothing is downloaded."""

    source: Literal["digits", "iris", "wine", "breast_cancer", "diabetes"]


class MakeClassificationData(_DataTable):
    """scikit-learn's ``make_classification``: clusters at the corners of a hypercube."""

    source: Literal["make_classification"]
    samples: Rows = 2000
    features: Count = 10
    informative: Count = 8
    classes: Annotated[int, Field(ge=2, description="a whole number, 2 or more")] = 5
    separation: Annotated[
        float, Field(gt=0, description="a number above 0; the larger, the easier the problem")
    ] = 1.0
    seed: Seed = 0


class MakeRegressionData(_DataTable):
    """scikit-learn's ``make_regression``: a linear target with Gaussian noise."""

    source: Literal["make_regression"]
    samples: Rows = 1000
    features: Count = 10
    informative: Count = 5
    noise: Annotated[float, Field(ge=0, description="a number, 0 or more")] = 10.0
    seed: Seed = 0


class MakeMoonsData(_DataTable):
    """scikit-learn's ``make_moons``: two interleaved half circles in the plane."""

    source: Literal["make_moons"]
    samples: Rows = 1000
    noise: Annotated[float, Field(ge=0, description="a number, 0 or more")] = 0.2
    seed: Seed = 0


class CsvData(ColumnKeys, _DataTable):
    """A CSV file with a header line.

    Attributes:
        file: path, relative to the recipe.
        delimiter: what separates the columns.
        decimal: what separates the fraction of a number; requests send numbers of JSON either way.
    """

    source: Literal["csv"]
    file: str = Field(min_length=1, description="path of a CSV file, relative to this recipe")
    delimiter: str = Field(",", pattern=r"^[^\n\r\"]$", description='one character, such as "," or ";"')
    decimal: Literal[".", ","] = Field(".", description='"." or ","; a "," asks for another delimiter')

    @field_validator("decimal")
    @classmethod
    def _is_no_delimiter(cls, decimal: str, info: ValidationInfo) -> str:
        if decimal == info.data.get("delimiter"):
            raise ValueError(f'got "{decimal}", which is data.delimiter too; set data.delimiter = ";", say')
        return decimal


class _ArrayTable(_DataTable):
    """Rows of any shape.

    Attributes:
        shape: of a row as the model and requests see it, such as ``[784]`` for a perceptron on pixels.
    """

    shape: list[Count] | None = Field(
        None, min_length=1, description="a list of whole numbers; leave it out to keep the shape of the data"
    )


class NpzData(_ArrayTable):
    """Two arrays of a ``.npz`` file (``numpy.savez``): features ``[rows, ...]`` and target ``[rows]``."""

    source: Literal["npz"]
    file: str = Field(min_length=1, description="path of an .npz file, relative to this recipe")
    features: str = Field("x", min_length=1, description="the name of an array, [rows, ...]")
    target: str = Field("y", min_length=1, description="the name of an array, [rows]")


class ParquetData(ColumnKeys, _DataTable):
    """A Parquet file.

    Attributes:
        file: path, relative to the recipe.
    """

    source: Literal["parquet"]
    file: str = Field(min_length=1, description="path of a Parquet file, relative to this recipe")


_FILE_NAME = Field(pattern=r"^[^/\\]+$", description="the name of a file in data.folder")
_SCALING = '"feature" (each to mean 0, deviation 1), "global" (one for all pixels) or "none"'


class IdxData(_ArrayTable):
    """IDX files, the format of MNIST, compressed or not: from a folder, or fetched into it once.

    Attributes:
        folder: where the files are, or are put, relative to the recipe.
        features: file of the images, ``[rows, height, width]``; a row becomes ``[1, height, width]``.
        target: file of the labels.
        test_features: file of rows that are set aside for the test, so that ``split.test`` is not used.
        test_target: its labels.
        url: where to fetch the files from, their names apart.
        sha256: for each file its hash; needed for what is fetched.
    """

    source: Literal["idx"]
    folder: str = Field(min_length=1, description="path of a folder, relative to this recipe")
    features: Annotated[str, _FILE_NAME] = "train-images-idx3-ubyte"
    target: Annotated[str, _FILE_NAME] = "train-labels-idx1-ubyte"
    test_features: Annotated[str | None, _FILE_NAME] = None
    test_target: Annotated[str | None, _FILE_NAME] = None
    url: str | None = Field(
        None, pattern=r"^https?://", description="an address that begins with http:// or https://"
    )
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        {}, description="a table of file names and their SHA-256, 64 digits of 0-9 and a-f"
    )
    scaling: Literal["feature", "global", "none"] = Field("global", description=_SCALING)


_GROUND = '"white", "black" or [red, green, blue], each 0 to 255'


def _check_ground(value: object) -> object:
    listed = isinstance(value, list) and len(value) == 3  # type: ignore[reportUnknownArgumentType]
    if value in ("white", "black") or (listed and all(type(n) is int and 0 <= n <= 255 for n in value)):  # type: ignore[reportUnknownVariableType]
        return value  # type: ignore[reportUnknownVariableType]
    raise ValueError(f"got {value!r}; allowed: {_GROUND}")


class ImagesData(_ArrayTable):
    """A folder of images, with a folder for each class.

    Attributes:
        folder: path, relative to the recipe.
        size: height and width that every image is brought to.
        colour: three channels or one.
        background: the ground that transparent pixels show, in training and when served.
        parts: ``folders`` takes the parts from folders called train, validation (or val) and test, with the
            classes in each; what is not there is drawn from train as ``[split]`` says.
    """

    source: Literal["images"]
    folder: str = Field(min_length=1, description="path of a folder, relative to this recipe")
    size: list[Count] = Field(min_length=2, max_length=2, description="[height, width] in pixels")
    colour: Literal["rgb", "grey"] = Field("rgb", description="rgb or grey")
    background: Annotated[str | list[int], BeforeValidator(_check_ground)] = Field(
        "white", description=_GROUND
    )
    parts: Literal["seeded", "folders"] = Field("seeded", description="seeded or folders")
    scaling: Literal["feature", "global", "none"] = Field("global", description=_SCALING)


DataTable = Annotated[
    BundledData
    | MakeClassificationData
    | MakeRegressionData
    | MakeMoonsData
    | CsvData
    | ParquetData
    | NpzData
    | IdxData
    | ImagesData,
    Field(discriminator="source", description="a table [data] with a key source"),
]


class SplitTable(_Table):
    """``[split]``: shares of the rows; what is left is for training. Its seed is not the training seed.

    Attributes:
        calibration: rows that decide nothing in training, so that what is calibrated on them is guaranteed.
            With 0 the validation rows calibrate, although they chose the epoch.
    """

    validation: float = Field(0.15, gt=0, lt=1, description="a share of the rows, above 0 and below 1")
    calibration: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="a share of the rows, from 0 to below 1; leave it out to set half of the validation rows "
        "aside where they are 2000 or more",
    )
    test: float = Field(0.15, gt=0, lt=1, description="a share of the rows, above 0 and below 1")
    seed: Seed = 0


class TrainingTable(_Table):
    """``[training]``.

    Attributes:
        epochs: passes over the training rows, at most.
        batch_size: rows a step.
        monitor: what makes an epoch the best: its validation ``loss``, or its ``score``, the validation
            accuracy or RMSE. A classifier that grows surer may err less while its loss rises. By ``nothing``
            the last epoch is kept.
        patience: stop after so many epochs that were not better; 0 never stops early. The weights of the best
            epoch are kept either way.
        label_smoothing: classification: share of the target that is spread over all classes.
        noise: regression: ``homoscedastic`` models return one value, and one noise for all rows is chosen on
            held-out rows; ``heteroscedastic`` ones return a value and its log variance.
        seed: of initial weights, order of batches, and dropout.
        device: where to train.
        devices: how many of them, each with a process of its own and its share of every batch.
        precision: ``auto`` is bfloat16 with 32-bit weights where a GPU is made for it, 32 bits elsewhere.
    """

    epochs: Count = 100
    batch_size: Annotated[int, Field(ge=2, description="a whole number, 2 or more")] = 64
    monitor: Annotated[
        Literal["loss", "score", "nothing"],
        Field(
            description="loss or score (validation accuracy or RMSE), by which the best epoch is kept, or "
            "nothing, which keeps the last one"
        ),
    ] = "loss"
    patience: Annotated[int, Field(ge=0, description="a whole number of epochs; 0 never stops early")] = 15
    label_smoothing: Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")] = 0.0
    noise: Annotated[
        Literal["homoscedastic", "heteroscedastic"],
        Field(
            description="regression: homoscedastic (the model returns a value) or heteroscedastic (a value "
            "and the log variance of its noise)"
        ),
    ] = "homoscedastic"
    seed: Seed = 0
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], Field(description="one of auto, cpu, cuda, mps")
    ] = "auto"
    devices: Annotated[int, Field(ge=1, le=64, description="a whole number from 1 to 64")] = 1
    precision: Annotated[
        Literal["auto", "32", "bf16-mixed", "16-mixed"],
        Field(description="one of auto, 32, bf16-mixed, 16-mixed, as a text"),
    ] = "auto"


class AugmentationTable(_Table):
    """``[augmentation]``: what is done to each training image, anew in each epoch. Others stay as they are.

    Attributes:
        flip: mirror left and right, every other time.
        shift: move by up to so many pixels each way; the image's edge is repeated.
    """

    flip: bool = Field(False, description="true or false")  # pydantic's first argument
    shift: int = Field(0, ge=0, le=64, description="a whole number of pixels from 0 to 64")


def _thousandths(value: object) -> object:
    """A fraction of three digits in thousandths; anything else as it is, for the field to judge."""
    if not isinstance(value, float) or not 0 < value < 1:
        return value
    found = round(value * 1000)
    return found if found and abs(found - value * 1000) < 1e-6 else value


class UncertaintyTable(_Table):
    """``[uncertainty]``: how the Monte Carlo answers are calibrated at export, on rows not trained on.

    Attributes:
        sets: score of a classifier's prediction sets.
        class_conditional: whether its sets hold the truth as often for the rows of each class; a class with
            few calibration rows is then in every set.
        intervals: method of a regressor's intervals.
        ood_score: by which unlike rows are told; ``auto`` and ``nearest`` keep some training rows in the run.
        false_alarms: share of usual rows that may be flagged as unlike; kept in thousandths.
    """

    sets: Annotated[Literal["lac", "aps", "raps"], Field(description="classification: lac, aps or raps")] = (
        "lac"
    )
    class_conditional: bool = Field(False, description="classification: true or false")
    intervals: Annotated[
        Literal["absolute", "scaled", "cqr"], Field(description="regression: absolute, scaled or cqr")
    ] = "scaled"
    ood_score: Annotated[
        Literal["auto", "max_probability", "predictive_entropy", "mutual_information", "energy", "nearest"],
        Field(
            description="auto or nearest; classification: max_probability, predictive_entropy, "
            "mutual_information or energy too"
        ),
    ] = "auto"
    false_alarms: Annotated[int, BeforeValidator(_thousandths)] = Field(
        50, ge=1, le=999, description="a fraction from 0.001 to 0.999, such as 0.05, or thousandths, 1 to 999"
    )


class Recipe(_Table):
    """The whole of a recipe.

    Attributes:
        name: of the model in the store and of its endpoint.
        task: decides the loss and the metrics.
    """

    name: str = Field(
        description="1 to 64 of a-z, 0-9, _ and -, beginning with a letter or digit; not runs, not ...-mc"
    )
    task: Literal["classification", "regression"] = Field(description="classification or regression")
    model: ModelTable = Field(description="a table [model] with a key class")
    data: DataTable
    split: SplitTable = Field(SplitTable(), description="a table [split]")  # type: ignore[call-arg]  # all have defaults
    training: TrainingTable = Field(TrainingTable(), description="a table [training]")
    augmentation: AugmentationTable = Field(
        AugmentationTable(),  # type: ignore[call-arg]
        description="a table [augmentation]",
    )
    uncertainty: UncertaintyTable = Field(
        UncertaintyTable(),  # type: ignore[call-arg]
        description="a table [uncertainty]",
    )
    optimiser: OptimiserTable = Field(OptimiserTable(), description="a table [optimiser]")  # type: ignore[call-arg]
    tuned: TunedTable = Field(TunedTable(), description="a table [tuned]")  # type: ignore[call-arg]

    @field_validator("name")
    @classmethod
    def _fit_for_paths(cls, name: str) -> str:
        try:
            return check_name(name)
        except UsageError as error:
            raise ValueError(str(error)) from error

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, defaults included, as JSON; ``tuned`` only where tune wrote it."""
        return self.model_dump(mode="json", by_alias=True, exclude=None if self.tuned.trials else {"tuned"})


SOURCE_TASK: dict[str, str] = {
    "digits": "classification",
    "iris": "classification",
    "wine": "classification",
    "breast_cancer": "classification",
    "diabetes": "regression",
    "make_classification": "classification",
    "make_regression": "regression",
    "make_moons": "classification",
    "images": "classification",
}
"""The task of each source that allows only one; files suit either."""
