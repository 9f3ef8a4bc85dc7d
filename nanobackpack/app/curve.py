"""Curves of a run, as a picture that is part of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nanobackpack.app import html


def curve(lines: Mapping[str, Sequence[tuple[float, float]]], x: str = "step", y: str = "loss") -> str:
    """Draw named lines of points as a picture of the page itself."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    left, right = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(p[1] for p in points), max(p[1] for p in points)

    def at(point: tuple[float, float]) -> str:
        across, up = (point[0] - left) / (right - left or 1), (point[1] - low) / (high - low or 1)
        return f"{50 + 570 * across:.1f},{250 - 230 * up:.1f}"

    drawn = [
        html.tag("polyline", points=" ".join(map(at, line)), class_=f"nb-line{i}")
        for i, line in enumerate(lines.values())
    ]
    for i in range(5):
        value, height = low + (high - low) * i / 4, 250 - 230 * i / 4
        drawn.append(html.tag("line", x1=50, x2=620, y1=height, y2=height))
        drawn.append(html.tag("text", f"{value:.3g}", x=44, y=height + 4, text_anchor="end"))
        step = left + (right - left) * i / 4
        drawn.append(html.tag("text", f"{step:,.0f}", x=50 + 570 * i / 4, y=268, text_anchor="middle"))
    drawn.append(html.tag("text", html.escape(x), x=335, y=286, text_anchor="middle"))
    names = [html.tag("span", html.escape(name), class_=f"nb-line{i}") for i, name in enumerate(lines)]
    picture = html.tag("svg", *drawn, viewBox="0 0 640 292", role="img", aria_label=f"{y} over {x}")
    return html.tag(
        "figure", picture, html.tag("figcaption", html.escape(y), ": ", *names), class_="nb-curve"
    )
