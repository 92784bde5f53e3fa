"""Restyle a drawing as SVG: colours, outlines, gradients, and the position and presence of each shape."""

import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from multicrop.pretrain.recolour import Colour, Recolouring, hexadecimal, parse_colour

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
SHAPES = {"path", "circle", "ellipse", "rect", "polygon", "polyline", "line"}
NOT_DRAWN = {"defs", "clipPath", "mask", "filter", "linearGradient", "radialGradient", "pattern"}
FILL = re.compile(r"(?:^|;)\s*fill\s*:\s*([^;]+)")
FAINT = 0.6  # opacity below which a shape is a shade or a shine and has no outline
DROPPED = 0.06

ET.register_namespace("", SVG)
ET.register_namespace("xlink", XLINK)


def restyle(svg: str, rng: random.Random) -> str:
    """Draw one random restyling of a drawing.

    Args:
        svg: The drawing, with a `viewBox`.
        rng: Source of every choice; the same state gives the same text.

    Returns:
        The restyled drawing. Its shapes are those of the original, up to small moves and a few that are left out.
    """
    root = ET.fromstring(svg if "xmlns:xlink" in svg else svg.replace("<svg ", f'<svg xmlns:xlink="{XLINK}" ', 1))
    return ET.tostring(_Restyling(root, rng).apply(), encoding="unicode")


def tag(element: ET.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rsplit("}", 1)[-1]


class _Restyling:
    """The choices for one drawing, drawn once, and their application to each shape."""

    def __init__(self, root: ET.Element, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        self.left, self.top, self.width, self.height = (float(value) for value in root.attrib["viewBox"].split())
        self.size = max(self.width, self.height)
        self.recolour = Recolouring(rng)
        line_art = self.recolour.mode == "line_art"
        self.outline = rng.choices(("dark", "own", "none"), (0.5, 0.2, 0.0 if line_art else 0.3))[0]
        self.stroke = hexadecimal((0.0, 0.0, 0.0) if rng.random() < 0.6 else self.recolour.line)
        self.stroke_width = self.size * rng.uniform(0.008, 0.04)
        self.flat = line_art or rng.random() < 0.7
        self.moves, self.drops = rng.random() < 0.6, rng.random() < 0.3
        self.outlined_share = 0.5 if rng.random() < 0.35 else 1.0
        self.varies = rng.random() < 0.3
        self.amplitude = rng.uniform(0.4, 2.2)
        self.gradients = _mean_colours(root) if self.flat else {}
        self.seen = 0

    def apply(self) -> ET.Element:
        self._visit(self.root, "#000000")
        for stop in self.root.iter():
            if tag(stop) == "stop" and "stop-color" in stop.attrib:
                stop.set("stop-color", self.recolour(stop.attrib["stop-color"]))
        if self.outline != "none":
            edge = self.stroke_width
            box = (self.left - edge / 2, self.top - edge / 2, self.width + edge, self.height + edge)
            self.root.set("viewBox", " ".join(f"{value:.4f}" for value in box))
        return self.root

    def _visit(self, element: ET.Element, inherited: str) -> None:
        """Restyle the element and what it contains; `inherited` is the fill of the group, in the drawing's own colours."""
        style = element.get("style", "")
        declared = FILL.search(style)
        fill = (declared.group(1).strip() if declared else element.get("fill")) or inherited
        self._colour(element)
        if tag(element) in SHAPES:
            self.seen += 1
            self._outline(element, fill)
            if self.moves and element.get("transform") is None:
                element.set("transform", self._move())
        for child in list(element):
            if tag(child) in NOT_DRAWN:
                continue
            if self.drops and self.seen > 1 and tag(child) in SHAPES and self.rng.random() < DROPPED:
                element.remove(child)
            else:
                self._visit(child, fill)

    def _colour(self, element: ET.Element) -> None:
        if "style" in element.attrib:
            element.set("style", self.recolour.declarations(element.attrib["style"]))
        for name in ("fill", "stroke"):
            value = element.get(name, "none")
            if name == "fill" and (mean := self.gradients.get(_reference(value))):
                element.set("fill", self.recolour(hexadecimal(mean[0])))
                if mean[1] < 0.95:
                    element.set("fill-opacity", f"{mean[1]:.2f}")
            elif value != "none":
                element.set(name, self.recolour(value))

    def _outline(self, element: ET.Element, fill: str) -> None:
        """Give a solid shape without a stroke an outline; vary the width of a stroke that it has."""
        factor = self.rng.uniform(0.5, 1.7) if self.varies else 1.0
        own = element.get("stroke-width")
        if element.get("stroke") is not None or "stroke:" in element.get("style", ""):
            if own and re.fullmatch(r"[\d.]+", own):
                element.set("stroke-width", f"{float(own) * factor:.4f}")
            return
        opacity = float(element.get("opacity") or element.get("fill-opacity") or 1)
        shaded = _reference(fill) is not None and not self.flat
        if self.outline == "none" or fill == "none" or opacity < FAINT or shaded or self.rng.random() >= self.outlined_share:
            return
        element.set("stroke", self.stroke if self.outline == "dark" else self._darker(element, fill))
        element.set("stroke-width", f"{self.stroke_width * factor:.4f}")
        element.set("stroke-linejoin", "round")
        element.set("stroke-linecap", "round")

    def _darker(self, element: ET.Element, fill: str) -> str:
        red, green, blue = parse_colour(element.get("fill") or self.recolour(fill)) or (0.0, 0.0, 0.0)
        return hexadecimal((red / 2, green / 2, blue / 2))

    def _move(self) -> str:
        """A small shift, turn and scaling about the centre of the drawing."""
        gauss, amplitude = self.rng.gauss, self.amplitude
        x, y = self.left + self.width / 2, self.top + self.height / 2
        shift = [centre + gauss(0, 0.007 * self.size * amplitude) for centre in (x, y)]
        scale = [1 + gauss(0, 0.022 * amplitude) for _ in range(2)]
        turn = gauss(0, 2 * amplitude)
        return (
            f"translate({shift[0]:.4f} {shift[1]:.4f}) rotate({turn:.3f}) scale({scale[0]:.4f} {scale[1]:.4f}) translate({-x:.4f} {-y:.4f})"
        )


def _reference(fill: str) -> str | None:
    """The id that a fill refers to, or None for a colour."""
    found = re.fullmatch(r"url\(#([^)]+)\)", fill.strip())
    return found.group(1) if found else None


def _mean_colours(root: ET.Element) -> dict[str | None, tuple[Colour, float]]:
    """The mean colour and opacity of each gradient with stops of its own."""
    means: dict[str | None, tuple[Colour, float]] = {}
    for gradient in root.iter():
        if tag(gradient).endswith("Gradient"):
            stops = list(_stops(gradient))
            if stops:
                red, green, blue = (sum(colour[i] for colour, _ in stops) / len(stops) for i in range(3))
                means[gradient.get("id")] = (red, green, blue), sum(opacity for _, opacity in stops) / len(stops)
    means.pop(None, None)
    return means


def _stops(gradient: ET.Element) -> Iterator[tuple[Colour, float]]:
    for stop in gradient.iter():
        colour = parse_colour(stop.get("stop-color", "")) if tag(stop) == "stop" else None
        if colour:
            yield colour, float(stop.get("stop-opacity") or 1)
