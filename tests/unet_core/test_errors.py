import re

import pytest

from unet_core import errors


def test_exit_codes_are_those_of_the_drawn_tree() -> None:
    assert errors.__doc__
    drawn = {
        name: int(code) for name, code in re.findall(r"^\s+(\w+Error)\s+(\d+)", errors.__doc__, flags=re.MULTILINE)
    }
    made = {name: cls.exit_code for name, cls in vars(errors).items() if isinstance(cls, type)}
    assert made == drawn


@pytest.mark.parametrize("name", [name for name, cls in vars(errors).items() if isinstance(cls, type)])
def test_every_error_is_caught_as_a_unet_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.UnetError)


def test_no_two_errors_share_an_exit_code_or_take_one_that_means_something_else() -> None:
    codes = [
        cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.UnetError)
    ]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
    assert 2 not in codes  # argparse's
