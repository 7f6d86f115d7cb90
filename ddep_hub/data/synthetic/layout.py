"""The layout of a rendered scene: camera, light, colours, the positions of objects, and the exposure."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from .objects import draw_building, draw_person, draw_tree, draw_vehicle
from .textures import Array, fractal_noise, soften
from .view import GROUND, TREE, WATER, Road, View, draw_ground, draw_ridge, draw_sky


Choice = TypeVar("Choice")
_SKIES = (  # zenith, horizon, cloud
    ((0.22, 0.45, 0.82), (0.72, 0.84, 0.95), (0.97, 0.97, 0.98)),
    ((0.36, 0.56, 0.78), (0.88, 0.86, 0.80), (0.95, 0.93, 0.90)),
    ((0.58, 0.62, 0.67), (0.78, 0.80, 0.82), (0.86, 0.87, 0.88)),
    ((0.30, 0.33, 0.58), (0.96, 0.66, 0.42), (0.92, 0.60, 0.52)),
    ((0.45, 0.42, 0.62), (0.93, 0.76, 0.72), (0.85, 0.72, 0.74)),
    ((0.20, 0.50, 0.62), (0.75, 0.88, 0.80), (0.93, 0.96, 0.92)),
)
_SOILS = ((0.50, 0.40, 0.28), (0.72, 0.62, 0.44), (0.45, 0.47, 0.30), (0.60, 0.42, 0.32), (0.58, 0.57, 0.55))
_GROWTHS = ((0.33, 0.48, 0.20), (0.47, 0.52, 0.24), (0.62, 0.56, 0.30), (0.86, 0.88, 0.92), (0.36, 0.42, 0.28))
_ROADS = ((0.34, 0.34, 0.36), (0.45, 0.44, 0.43), (0.52, 0.42, 0.33), (0.26, 0.27, 0.31), (0.58, 0.50, 0.46))
_WATERS = ((0.12, 0.30, 0.42), (0.14, 0.36, 0.34), (0.30, 0.34, 0.28), (0.22, 0.28, 0.36))
_LEAVES = ((0.22, 0.40, 0.14), (0.34, 0.46, 0.16), (0.14, 0.30, 0.20), (0.62, 0.40, 0.12), (0.60, 0.24, 0.12))
_WALLS = (
    (0.72, 0.38, 0.28),
    (0.85, 0.78, 0.62),
    (0.60, 0.64, 0.68),
    (0.80, 0.82, 0.82),
    (0.48, 0.58, 0.48),
    (0.55, 0.42, 0.34),
    (0.42, 0.52, 0.68),
    (0.88, 0.66, 0.44),
)


def draw_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array]:
    """Draws a scene of `size` (h, w); returns the image, uint8 (h, w, 3), and the mask, uint8 (h, w) of class ids."""
    height, width = size
    zenith, low, cloud = (_vary(rng, color, 0.04) for color in _pick(rng, _SKIES))
    azimuth, elevation = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.3, 1.1)
    cover = rng.uniform(-0.1, 0.45)
    view = View(
        image=np.zeros((height, width, 3), dtype=np.float32),
        mask=np.zeros((height, width), dtype=np.uint8),
        focal=rng.uniform(0.95, 1.35) * height,
        middle=width * rng.uniform(0.35, 0.65),
        horizon=height * rng.uniform(0.3, 0.52),
        eye=rng.uniform(1.7, 4.0),
        light=(
            float(np.cos(elevation) * np.cos(azimuth)),
            float(np.sin(elevation)),
            float(np.cos(elevation) * np.sin(azimuth)),
        ),
        sun=float(np.clip(rng.uniform(0.5, 1.1) - cover, 0.05, 1.0)),
        haze=low,
        clarity=rng.uniform(60.0, 220.0),
        noise=1.6 * fractal_noise(rng, 128, 128, (8, 8), 5, 0.65),
    )
    draw_sky(view, rng, zenith, low, cloud, cover)
    leaves, soil, growth = (_vary(rng, _pick(rng, palette), 0.05) for palette in (_LEAVES, _SOILS, _GROWTHS))
    if rng.random() < 0.6:
        draw_ridge(view, rng, (soil + growth) / 2, GROUND, height * rng.uniform(0.04, 0.2), 60.0)
    if rng.random() < 0.55:
        draw_ridge(view, rng, leaves, TREE, height * rng.uniform(0.03, 0.1), 40.0)
    road, lake = _road_and_lake(rng)
    asphalt, water = (_vary(rng, _pick(rng, palette), 0.04) for palette in (_ROADS, _WATERS))
    draw_ground(view, soil=soil, growth=growth, asphalt=asphalt, water=water, road=road, lake=lake)
    _populate(view, rng, road, leaves)
    return _develop(view, rng), view.mask


def _road_and_lake(rng: np.random.Generator) -> tuple[Road | None, tuple[str, float] | None]:
    road: Road | None = None
    layout = rng.random()
    if layout < 0.55:
        road = Road(
            False, rng.uniform(-2, 2), rng.uniform(-0.35, 0.35), rng.uniform(-0.008, 0.008), rng.uniform(2.4, 4.5)
        )
    elif layout < 0.88:
        road = Road(True, rng.uniform(9.0, 18.0), 0.0, 0.0, rng.uniform(2.2, 3.8))
    lake: tuple[str, float] | None = None
    if rng.random() < 0.7:
        kind = ("far", "left", "right")[rng.integers(3)]
        if road is not None and road.across:
            kind = "far"
        nearest = 8.0 if road is None or not road.across else road.offset + road.half_width + 2.0
        lake = (kind, nearest + rng.uniform(0.0, 8.0) if kind == "far" else rng.uniform(1.0, 5.0))
    return road, lake


def _populate(view: View, rng: np.random.Generator, road: Road | None, leaves: Array) -> None:
    """Draws everything that stands, shadows first, then from far to near."""
    standing: list[tuple[float, Callable[[], None]]] = []
    half_view = 0.62 * view.mask.shape[1] / view.focal

    def random_position(nearest: float, farthest: float) -> tuple[float, float]:
        """A random place (x, z) in view."""
        z = rng.uniform(nearest, farthest)
        return rng.uniform(-half_view, half_view) * z, z

    def is_free(x: float, z: float, margin: float) -> bool:
        """Whether (x, z) is off the road by `margin` metres, and not in the water."""
        if road is not None and road.inside(np.array(x), np.array(z)) > -margin:
            return False
        row, column = view.horizon + view.eye * view.focal / z, view.middle + x * view.focal / z
        height, width = view.mask.shape
        return bool(view.mask[min(int(row), height - 1), min(max(int(column), 0), width - 1)] != WATER)

    for _ in range(rng.integers(1, 9)):
        x, z = random_position(13.0, 45.0)
        half_width, depth = rng.uniform(3.0, 7.0), rng.uniform(8.0, 16.0)
        if all(is_free(x + side, z + back, 1.5) for side in (-half_width, 0.0, half_width) for back in (0.0, depth)):
            wall = _vary(rng, _pick(rng, _WALLS), 0.05)
            object_height = rng.uniform(4.0, 9.0) if rng.random() < 0.6 else rng.uniform(9.0, 20.0)
            view.shadow(x, z + depth / 2, 2 * half_width, object_height)
            box = (x - half_width, x + half_width)
            standing.append(
                (z, partial(draw_building, view, rng, x=box, z=(z, z + depth), height=object_height, wall=wall))
            )
    for _ in range(rng.integers(3, 12)):
        x, z = random_position(8.0, 40.0)
        if is_free(x, z, 1.0):
            leaf = _vary(rng, 0.5 * (leaves + np.array(_pick(rng, _LEAVES))), 0.04)
            object_height = rng.uniform(3.0, 9.0)
            view.shadow(x, z, 0.45 * object_height, 0.8 * object_height)
            standing.append((z, partial(draw_tree, view, rng, x=x, z=z, height=object_height, leaf=leaf)))
    for _ in range(rng.integers(2, 9)):
        x, z = random_position(4.5, 15.0)
        if is_free(x, z, -0.8):
            view.shadow(x, z, 0.5, 1.7)
            standing.append((z, partial(draw_person, view, rng, x=x, z=z)))
    parked: list[tuple[float, float]] = []
    for _ in range(rng.integers(2, 7)):
        kind = int(rng.choice(3, p=(0.68, 0.22, 0.1)))
        side_on = road.across if road is not None else rng.random() < 0.6
        x, z = random_position(8.0, 28.0)
        lane = -0.45 if rng.random() < 0.5 else 0.45
        if road is None:
            if not is_free(x, z, 0.0):
                continue
        elif road.across:
            x, z = x * road.offset / z, road.offset + lane * road.half_width
        else:
            x = road.offset + road.slope * z + road.bend * z * z + lane * road.half_width
        if any(
            abs(x - parked_x) < (9.0 if side_on else 1.9) and abs(z - parked_z) < (2.0 if side_on else 7.0)
            for parked_x, parked_z in parked
        ):
            continue
        parked.append((x, z))
        view.shadow(x, z, (4.0, 4.8, 8.0)[kind] if side_on else 2.2, 1.2)
        standing.append((z, partial(draw_vehicle, view, rng, x=x, z=z, kind=kind, side_on=side_on)))
    for _, draw in sorted(standing, key=lambda item: -item[0]):
        draw()


def _develop(view: View, rng: np.random.Generator) -> Array:
    """Exposure, colour temperature, contrast, vignette, lens blur and sensor noise; uint8 (h, w, 3)."""
    height, width = view.mask.shape
    warmth = rng.normal(0.0, 0.05) + 0.08 * (0.6 - view.light[1]) * view.sun
    exposure, contrast = rng.uniform(0.84, 1.2), rng.uniform(0.9, 1.25)
    gains = np.array([1.0 + warmth, 1.0, 1.0 - warmth], dtype=np.float32) * np.float32(255.0 * exposure * contrast)
    rows = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None]
    vignette = 1.0 - rng.uniform(0.02, 0.12) * (rows * rows + columns * columns)
    image = soften(view.image, rng.uniform(0.06, 0.16)) * (gains * vignette[..., None])
    # Contrast turns about middle grey; the half rounds.
    image += 0.45 * 255.0 * (1.0 - contrast) + 0.5
    # Sensor noise comes after the lens, so it is not blurred.
    image += rng.uniform(1.0, 4.0) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0.0, 255.0, out=image).astype(np.uint8)


def _pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _vary(rng: np.random.Generator, color: Array | tuple[float, ...], amount: float) -> Array:
    """The colour a little brighter or darker, and a little off in hue."""
    varied = np.asarray(color) * rng.uniform(0.85, 1.15) + rng.uniform(-amount, amount, 3)
    return np.clip(varied, 0.03, 0.97).astype(np.float32)
