"""One random recolouring of a whole drawing: equal colours stay equal."""

import colorsys
import random
import re

Colour = tuple[float, float, float]  # red, green, blue, from 0 to 1

MODES = {"keep": 2.0, "shift": 3.0, "turn": 1.5, "jitter": 2.0, "grey": 0.7, "line_art": 1.5, "palette": 1.5, "saturate": 1.0}
NAMES = {"black": "#000000", "white": "#ffffff", "red": "#ff0000", "gray": "#808080", "currentcolor": "#000000"}
HEX = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")
INK, PAPER = 0.12, 0.97  # lightness below and above which a colour is a line or a highlight and keeps its lightness


def parse_colour(text: str) -> Colour | None:
    """The colour of a hexadecimal or common name, or None for anything else (`none`, `url(#...)`)."""
    text = NAMES.get(text.strip().lower(), text.strip())
    if not HEX.fullmatch(text):
        return None
    digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return red, green, blue


def hexadecimal(colour: Colour) -> str:
    """`#rrggbb`, clipped to the gamut."""
    return "#" + "".join(f"{round(255 * min(max(channel, 0.0), 1.0)):02x}" for channel in colour)


def luma(colour: Colour) -> float:
    """Perceived lightness, from 0 to 1."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


class Recolouring:
    """Maps the colours of one drawing to new ones, with a mode drawn from `MODES`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.mode = rng.choices(list(MODES), list(MODES.values()))[0]
        self.turn = rng.random() if self.mode == "turn" else rng.gauss(0, 0.03)
        self.saturation, self.lightness = rng.uniform(0.3, 1.6), rng.uniform(0.75, 1.3)
        self.palette = [_hls(rng, (0.35, 0.85), (0.3, 1.0)) for _ in range(rng.randint(2, 4))]
        self.line = (0.0, 0.0, 0.0) if rng.random() < 0.6 else _hls(rng, (0.1, 0.35), (0.0, 1.0))
        self.paper = (1.0, 1.0, 1.0) if rng.random() < 0.6 else _hls(rng, (0.8, 0.95), (0.0, 1.0))
        self.known: dict[tuple[int, ...], Colour] = {}

    def __call__(self, text: str) -> str:
        """The new colour of a colour, or the text itself where it names none."""
        colour = parse_colour(text)
        if colour is None:
            return text
        key = tuple(round(24 * channel) for channel in colour)  # shades of one gradient stay one colour
        if key not in self.known:
            self.known[key] = getattr(self, f"_{self.mode}")(colour)
        return hexadecimal(self.known[key])

    def declarations(self, style: str) -> str:
        """A `style` attribute with each of its colours replaced."""
        return HEX.sub(lambda found: self(found.group(0)), style)

    def _keep(self, colour: Colour) -> Colour:
        return colour

    def _shift(self, colour: Colour) -> Colour:
        hue, light, saturation = colorsys.rgb_to_hls(*colour)
        light = min(light * self.lightness, 1.0) if INK < light < PAPER else light
        return colorsys.hls_to_rgb((hue + self.turn) % 1, light, min(saturation * self.saturation, 1.0))

    _turn = _shift  # the same map with any turn of the hue

    def _jitter(self, colour: Colour) -> Colour:
        hue, light, saturation = colorsys.rgb_to_hls(*colour)
        moved = min(max(light + self.rng.gauss(0, 0.1), 0.0), 1.0) if INK < light < PAPER else light
        saturation = min(saturation * self.rng.uniform(0.4, 1.5), 1.0)
        return colorsys.hls_to_rgb((hue + self.rng.gauss(0, 0.1)) % 1, moved, saturation)

    def _grey(self, colour: Colour) -> Colour:
        value = min(luma(colour) * self.lightness, 1.0)
        return value, value, value

    def _line_art(self, colour: Colour) -> Colour:
        return self.line if luma(colour) < 0.3 else self.paper

    def _palette(self, colour: Colour) -> Colour:
        if luma(colour) < 0.22 or luma(colour) > 0.93:
            return self.line if luma(colour) < 0.22 else colour
        return min(self.palette, key=lambda chosen: abs(luma(chosen) - luma(colour)) + 0.4 * self.rng.random())

    def _saturate(self, colour: Colour) -> Colour:
        hue, light, saturation = colorsys.rgb_to_hls(*colour)
        return colorsys.hls_to_rgb(hue, 0.5 if 0.2 < light < 0.9 else light, 1.0 if saturation > 0.15 else saturation)


def _hls(rng: random.Random, light: tuple[float, float], saturation: tuple[float, float]) -> Colour:
    return colorsys.hls_to_rgb(rng.random(), rng.uniform(*light), rng.uniform(*saturation))
