"""The data sets, each as two splits: small sets in memory, and sets of encoded images in folders."""

from pathlib import Path

from gnp_scale.checks import changed_options
from gnp_scale.config import ConfigError, DataConfig, check
from gnp_scale.data.dataset import Dataset, Split
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.data.parts import parts_of
from gnp_scale.data.small_sets import READERS
from gnp_scale.run.store_requests import StoreError

_OF_ENCODED_IMAGES = ("image_size", "crop_area", "eval_crop", "eval_filter", "max_damaged")


class MissingDataError(ConfigError):
    """The files of a data set are not here, or cannot be read."""


def load(config: DataConfig) -> Dataset:
    """The data set that `config` names.

    Raises:
        MissingDataError: its files are missing or damaged; the message says how to get them.
        ConfigError: an option does not fit it.
    """
    check_options(config)
    try:
        return _small_set(config) if config.name in READERS else _images(config)
    except StoreError:
        raise
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise MissingDataError(
            f"data set {config.name} cannot be read ({reason}): check data.root ({config.root})"
        ) from error


def unread_advice(config: DataConfig) -> str | None:
    """Which options were changed although only sets of encoded images have them; None if none.

    It is only advice: earlier versions trained with them, and a run keeps its options to the end.
    """
    changed = changed_options("data", config, _OF_ENCODED_IMAGES)
    if config.name not in READERS or not changed:
        return None
    return f"without effect, because the images of {config.name} are not encoded: {changed}"


def check_options(config: DataConfig) -> None:
    """Refuses options that say which data are read, and are not read by this data set."""
    is_small = config.name in READERS
    readers = (
        (not is_small, ("train_split", "eval_labels")),
        (config.name == "synthetic", ("synthetic_num_examples", "synthetic_image_size", "synthetic_num_classes")),
    )
    for is_read, names in readers:
        for name in names:
            value = getattr(config, name)
            check(
                is_read or value == getattr(DataConfig, name),
                f"data.{name} is {value}, but data set {config.name} does not read it: leave it out",
            )


def _small_set(config: DataConfig) -> Dataset:
    command = f"run `gnp-scale data download {config.name} --root {config.root}`"
    try:
        dataset = READERS[config.name](config)
    except FileNotFoundError as error:
        if "://" in config.root:
            reason = f"data.root is {config.root}, but {config.name} is read from a local folder: give one"
            raise MissingDataError(reason) from error
        folder = Path(config.root) / config.name
        raise MissingDataError(
            f"data set {config.name} is not in {folder}: {command} ({error.filename} is missing)"
        ) from error
    except DamagedFileError as error:
        raise MissingDataError(f"data set {config.name} is damaged: {error}; {command}") from error
    train, test = dataset.train, dataset.test
    assert isinstance(train, Split), "small sets are in memory"
    assert isinstance(test, Split), "small sets are in memory"
    return parts_of(dataset, train, test, config)


def _images(config: DataConfig) -> Dataset:
    # The decoders take half a second to import, and small sets do not need them.
    from gnp_scale.data.images import load_images

    try:
        return load_images(config)
    except FileNotFoundError as error:
        raise MissingDataError(
            f"there is no data set {config.name}: give the name of a folder in data.root ({config.root}), or one of "
            f"{', '.join(READERS)}"
        ) from error
