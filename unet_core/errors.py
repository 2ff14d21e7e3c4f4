"""The error tree. Each class knows the exit code of a command that ends with it.

    UnetError        1
      RecipeError    3   params.yaml: unknown key, wrong type, impossible value
      DataError      4   images, masks, ledger, shards
      TrainingError  5   the run itself: no batch fits, loss is not a number
      RegistryError  6   tracking server and model registry
      StorageError   7   disk full, address not readable
      ModelError     8   a model directory, or a model that does not fit the image
      DifferenceError 9  a training done again gave other bits

argparse ends with 2 for a wrong command line; 10 and above are left to schedulers.
"""


class UnetError(Exception):
    """A mistake that we foresaw: its text says what, where, what we got and what to do."""

    exit_code = 1


class RecipeError(UnetError):
    """The recipe (params.yaml) asks for something that does not exist or cannot work."""

    exit_code = 3


class DataError(UnetError):
    """Images, masks, the ledger or shards are not what the recipe says."""

    exit_code = 4


class TrainingError(UnetError):
    """Training cannot start or cannot go on."""

    exit_code = 5


class RegistryError(UnetError):
    """The tracking server or the model registry did not give what was asked of it."""

    exit_code = 6


class StorageError(UnetError):
    """A place could not be read or written."""

    exit_code = 7


class ModelError(UnetError):
    """A model directory is damaged, or the model does not fit the image."""

    exit_code = 8


class DifferenceError(UnetError):
    """A training done again gave other bits than were recorded."""

    exit_code = 9
