"""How a figure is written."""


def amount(value: float, unit: str) -> str:
    """Return *value* with its *unit*, to three digits at most."""
    if unit == "s":
        return _seconds(value)
    if unit == "B":
        return f"{value:,.0f} B"
    if unit == "x":
        return f"{_digits(value)}x"
    return f"{_digits(value)} {unit}".strip().replace(" /s", "/s")


def _seconds(value: float) -> str:
    for scale, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * scale >= 1:
            return f"{_digits(value * scale)} {unit}"
    return f"{_digits(value * 1e9)} ns"


def _digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"
