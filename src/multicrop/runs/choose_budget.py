"""The budget of a search: seconds or views."""

import re
import time
from dataclasses import dataclass, field

UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass
class Budget:
    """What a search may cost: seconds since it began, or views encoded.

    Args:
        seconds: Most seconds; None: no limit.
        views: Most views; None: no limit.
    """

    seconds: float | None = None
    views: int | None = None
    spent: int = 0
    began: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, text: str | None) -> "Budget":
        """The budget that a text such as ``10m``, ``90s``, ``1h`` or ``20000views`` names; None: no limit.

        Raises:
            ValueError: If the text is none of these.
        """
        if text is None:
            return cls()
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|views)", str(text))
        if not found:
            raise ValueError(f"task.budget is a time (90s, 10m, 1h) or a number of views (20000views), got {text!r}; null: no limit")
        number, unit = found.groups()
        return cls(views=int(float(number))) if unit == "views" else cls(seconds=float(number) * UNITS[unit])

    def allows(self, views: int, views_per_second: float) -> bool:
        """Whether so many views more can be encoded, at the rate measured so far."""
        if self.views is not None:
            return self.spent + views <= self.views
        return self.seconds is None or time.perf_counter() - self.began + views / views_per_second <= self.seconds
