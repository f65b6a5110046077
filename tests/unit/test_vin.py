from __future__ import annotations

import pytest

from neuroweaver import vin


@pytest.mark.parametrize("number", ["1FTEW1EP2KF000000", "5J6RM4H51GL000000", "4T1B11HKXJU000000", "11111111111111111"])
def test_vin_check_digit_fits_a_right_number(number: str) -> None:
    assert vin.has_right_check_digit(number)


def test_vin_check_digit_says_which_sign_belongs_in_ninth_place() -> None:
    assert vin.check_digit("3VWCB7BU5KM000000") == "2"
    assert not vin.has_right_check_digit("3VWCB7BU5KM000000")


@pytest.mark.parametrize("number", ["", "1FTEW1EP2KF00000", "IFTEW1EP2KF000000", "1ftew1ep2kf000000"])
def test_vin_check_digit_refuses_what_is_no_vin(number: str) -> None:
    with pytest.raises(ValueError, match="17 letters"):
        vin.check_digit(number)


def test_vin_is_north_american_by_its_first_sign() -> None:
    assert all(vin.is_north_american(f"{sign}VWCB7BU5KM000000") for sign in "12345")
    assert not any(vin.is_north_american(number) for number in ("WVWZZZ1KZAW000000", "JTDBR32E", ""))
