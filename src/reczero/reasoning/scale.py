"""The rating scale: which numbers are ratings, and how they are written."""

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Scale:
    """Ratings from `min` to `max`; the grid that guided decoding may write starts at `min` and goes by `step`."""

    min: float = 1.0
    max: float = 5.0
    step: float = 1.0

    def __post_init__(self) -> None:
        if not (self.max > self.min and 0 < self.step <= self.max - self.min):
            raise ValueError(f"not a rating scale: min {self.min}, max {self.max}, step {self.step}")

    @property
    def width(self) -> float:
        """The largest possible error, `max - min`."""
        return self.max - self.min

    def grid(self) -> tuple[float, ...]:
        """Every rating that lies on the grid, ascending; computed in decimals so that 0.1 steps do not drift."""
        low, high, step = (Decimal(str(x)) for x in (self.min, self.max, self.step))
        return tuple(float(low + i * step) for i in range(int((high - low) / step) + 1))

    def nearest(self, value: float) -> float:
        """The rating of the grid that is nearest, the higher of two."""
        return min(reversed(self.grid()), key=lambda rating: round(abs(rating - value), 9))

    def contains(self, value: float) -> bool:
        return self.min <= value <= self.max

    @staticmethod
    def text(value: float, places: int = 6) -> str:
        """The shortest plain decimal: 4.0 -> "4", 3.50 -> "3.5"; at most `places` decimals."""
        written = f"{value:.{places}f}"
        return written.rstrip("0").rstrip(".") if "." in written else written

    def to_dict(self) -> dict[str, float]:
        return {"min": self.min, "max": self.max, "step": self.step}
