"""Whole paise and ten-thousandths: how the feeds write them, and how they are rounded."""


def text(paise: int) -> str:
    """Paise as the feed writes them: "-1234.50"."""
    if paise < 0:
        return "-" + text(-paise)
    return f"{paise // 100}.{paise % 100:02d}"


def units_text(ten_thousandths: int) -> str:
    """Units or a NAV, with four decimals."""
    return f"{ten_thousandths // 10_000}.{ten_thousandths % 10_000:04d}"


def half_up(numerator: int, denominator: int) -> int:
    """The quotient of two whole numbers, not negative, rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)
