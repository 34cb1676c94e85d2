"""A seeded market for the scenario: daily prices of NSE symbols, options on the indices, and fund NAVs.

Pure and the same for every customer: a path depends on the seed and the symbol alone. Prices are paise on
the exchange's tick of 5 paise; NAVs are in ten-thousandths of a rupee, as fund houses publish them.
"""

import random
from calendar import monthrange
from datetime import date, timedelta
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

TICK = 5
EQUITIES = {
    "RELIANCE": 1_412_00, "HDFCBANK": 998_00, "ICICIBANK": 1_380_00, "INFY": 1_502_00, "TCS": 3_088_00,
    "SBIN": 884_00, "ITC": 412_00, "LT": 3_920_00, "BHARTIARTL": 2_010_00, "SUNPHARMA": 1_690_00,
    "MARUTI": 15_600_00, "TITAN": 3_720_00, "ASIANPAINT": 2_480_00, "WIPRO": 246_00,
}  # fmt: skip
"""Symbols of NSE's cash market and about what they cost in late 2025."""
INDICES = {"NIFTY": 25_900_00, "BANKNIFTY": 58_400_00}
LOTS = {"NIFTY": 65, "BANKNIFTY": 30}
"""Market lots of the index derivatives since January 2026."""
STRIKE_STEP = {"NIFTY": 100_00, "BANKNIFTY": 500_00}


class Scheme(NamedTuple):
    """A mutual fund scheme: its AMFI code, its name, and its NAV on the first day."""

    code: str
    name: str
    nav: int


SCHEMES = (
    Scheme("120716", "UTI Nifty 50 Index Fund - Direct Plan - Growth", 162_4310),
    Scheme("122639", "Parag Parikh Flexi Cap Fund - Direct Plan - Growth", 88_1260),
    Scheme("118955", "HDFC Flexi Cap Fund - Direct Plan - Growth", 2_140_5500),
    Scheme("125497", "SBI Small Cap Fund - Direct Plan - Growth", 196_7080),
    Scheme("118825", "Mirae Asset Large Cap Fund - Direct Plan - Growth", 124_9020),
)


class Contract(NamedTuple):
    """What is traded. `underlying` of a share is itself."""

    symbol: str
    underlying: str
    instrument: str
    strike: int = 0
    right: str = ""
    expiry: date = date.max


class Market:
    """Prices by day. `start` is the first day there is one."""

    def __init__(self, seed: int, start: date) -> None:
        self._seed = seed
        self.start = start
        self._paths: dict[str, list[int]] = {}
        self._chances: dict[str, random.Random] = {}

    def price(self, contract: Contract, day: date) -> int:
        """What one unit costs at the close of `day`, in paise."""
        spot = self._at(contract.underlying, day)
        if contract.instrument != "option":
            return spot
        days_left = max((contract.expiry - day).days, 0)
        beyond = spot - contract.strike if contract.right == "CE" else contract.strike - spot
        # Time value falls with the root of the time left and with the distance from the strike.
        time_value = int(spot * 0.016 * sqrt(days_left / 30)) - abs(spot - contract.strike) // 3
        return max((max(beyond, 0) + max(time_value, 0)) // TICK * TICK, TICK)

    def nav(self, scheme: Scheme, day: date) -> int:
        """The scheme's NAV of `day` in ten-thousandths of a rupee."""
        return self._at(scheme.code, day)

    def call_or_put(self, underlying: str, day: date, right: str) -> Contract:
        """Next month's option at the money, e.g. NIFTY26MAR25900CE."""
        step = STRIKE_STEP[underlying]
        strike = (self._at(underlying, day) + step // 2) // step * step
        expiry = expiry_after(day)
        symbol = f"{underlying}{expiry:%y%b}{strike // 100}{right}".upper()
        return Contract(symbol, underlying, "option", strike, right, expiry)

    def future(self, underlying: str, day: date) -> Contract:
        """Next month's future, e.g. NIFTY26MARFUT."""
        expiry = expiry_after(day)
        return Contract(f"{underlying}{expiry:%y%b}FUT".upper(), underlying, "future", expiry=expiry)

    def _at(self, name: str, day: date) -> int:
        path = self._paths.get(name)
        if path is None:
            path = self._paths[name] = [_first_price(name)]
            self._chances[name] = random.Random(f"{self._seed}:market:{name}")  # noqa: S311 — repeatable on purpose
        index = (day - self.start).days
        is_fund = name[0].isdigit()
        spread, drift = (0.007, 0.00045) if is_fund or name in INDICES else (0.014, 0.0005)
        while len(path) <= index:
            yesterday = path[-1]
            if (self.start + timedelta(days=len(path))).weekday() >= 5:
                path.append(yesterday)  # the exchange is closed
                continue
            moved = int(yesterday * (1 + self._chances[name].gauss(drift, spread)))
            path.append(max(moved if is_fund else moved // TICK * TICK, TICK))
        return path[index]


@lru_cache(maxsize=1024)
def expiry_after(day: date) -> date:
    """The last Tuesday of the month after `day`'s: when NSE's monthly contracts expire."""
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    last = date(year, month, monthrange(year, month)[1])
    return last - timedelta(days=(last.weekday() - 1) % 7)


@lru_cache(maxsize=256)
def share(symbol: str) -> Contract:
    """A share of NSE's cash market."""
    return Contract(symbol, symbol, "equity")


def _first_price(name: str) -> int:
    if name in INDICES:
        return INDICES[name]
    if name in EQUITIES:
        return EQUITIES[name]
    return next(scheme.nav for scheme in SCHEMES if scheme.code == name)
