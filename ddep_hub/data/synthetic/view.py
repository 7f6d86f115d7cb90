"""Camera, light and backdrop (sky, hills, ground, water, road) of the rendered scenes.

World coordinates are metres: X to the right of the camera, Z away from it, heights above the ground.
"""

import math
from dataclasses import dataclass

import numpy as np

from .textures import Array, fractal_noise, lookup, smoothstep, stripes


SKY, GROUND, ROAD, WATER, BUILDING, TREE, PERSON, VEHICLE = range(8)


@dataclass(frozen=True)
class Road:
    """A road that runs away from the camera (x = offset + slope * z + bend * z**2), or across at z = offset."""

    across: bool
    offset: float
    slope: float
    bend: float
    half_width: float

    def inside(self, x: Array, z: Array) -> Array:
        """Metres from the nearer edge, positive on the road, measured along X, or along Z for a road across."""
        return np.asarray(self.half_width - np.abs(self.from_middle(x, z)))

    def from_middle(self, x: Array, z: Array) -> Array:
        """Metres from the middle line."""
        return z - self.offset if self.across else x - (self.offset + self.slope * z + self.bend * z * z)


@dataclass
class View:
    """A scene being rendered.

    Attributes:
        image: float32 (h, w, 3), display values in 0..1.
        mask: uint8 (h, w), class ids.
        focal: Focal length in pixels.
        middle: Column of X = 0, in pixels.
        horizon: Row of the horizon, in pixels.
        eye: Height of the camera above the ground, in metres.
        light: Unit vector to the light: right, up, towards the camera.
        sun: Strength of direct light in 0..1; the rest is ambient.
        haze: Colour (3,) of far things.
        clarity: Depth in metres at which about two thirds of a colour are haze.
        noise: Periodic texture (128, 128).
    """

    image: Array
    mask: Array
    focal: float
    middle: float
    horizon: float
    eye: float
    light: tuple[float, float, float]
    sun: float
    haze: Array
    clarity: float
    noise: Array

    def window(
        self, x: tuple[float, float], up: tuple[float, float], z: float
    ) -> tuple[tuple[slice, slice], Array, Array] | None:
        """The pixels that show an upright rectangle at depth `z`; `x` and `up` are its ends along X and in height.

        All are in metres. Returns slices into the image, heights (n, 1) and positions X (1, m) of the pixel centres;
        None if the rectangle is outside the image.
        """
        scale = self.focal / z
        height, width = self.mask.shape
        top = max(0, int(self.horizon + (self.eye - up[1]) * scale))
        bottom = min(height, int(self.horizon + (self.eye - up[0]) * scale) + 2)
        left = max(0, int(self.middle + x[0] * scale))
        right = min(width, int(self.middle + x[1] * scale) + 2)
        if top >= bottom or left >= right:
            return None
        rows = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5
        columns = np.arange(left, right, dtype=np.float32)[None] + 0.5
        return (
            (slice(top, bottom), slice(left, right)),
            self.eye - (rows - self.horizon) / scale,
            (columns - self.middle) / scale,
        )

    def paint(self, region: tuple[slice, slice], cover: Array, color: Array, label: int, z: Array | float) -> None:
        """Blends a colour, (3,) or (n, m, 3), over a region of the image.

        `cover` is the opacity (n, m) in 0..1; from 0.5 on, the pixel gets the label. `z` is the depth in metres, which
        determines the haze: a number, or an array that broadcasts with `cover`.
        """
        # Most parts cover little of their object's window; the rest is skipped.
        rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
        if not rows.size:
            return
        part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        color = color[part] if color.ndim == 3 else color
        if isinstance(z, float):
            hazy = self.haze + math.exp(-z / self.clarity) * (color - self.haze)
        else:
            clear = np.broadcast_to(np.exp(-z / self.clarity), cover.shape)[part]
            hazy = self.haze + clear[..., None] * (color - self.haze)
        cover = cover[part]
        target = self.image[region][part]
        target += cover[..., None] * (hazy - target)
        self.mask[region][part][cover >= 0.5] = label

    def shadow(self, x: float, z: float, width: float, height: float) -> None:
        """Draws the shadow of an object of this size at (x, z) on the ground; metres."""
        reach = min(height / max(self.light[1], 0.15), 12.0)
        end_x = x - self.light[0] * reach
        end_z = max(z + self.light[2] * reach, 2.5)
        radius = 0.5 * width
        near, far = max(min(z, end_z) - radius, 2.0), max(z, end_z) + radius
        ends = [
            self.middle + side * self.focal / depth
            for side in (min(x, end_x) - 1.3 * radius, max(x, end_x) + 1.3 * radius)
            for depth in (near, far)
        ]
        rows = slice(
            max(0, int(self.horizon + self.eye * self.focal / far)),
            int(self.horizon + self.eye * self.focal / near) + 1,
        )
        region = (rows, slice(max(0, int(min(ends))), max(0, int(max(ends)) + 1)))
        depth, across = self.ground_coordinates(region)
        if not depth.size or not across.size:
            return
        along_x, along_z = end_x - x, end_z - z
        length = along_x * along_x + along_z * along_z + 1e-6
        t = np.clip(((across - x) * along_x + (depth - z) * along_z) / length, 0.0, 1.0)
        distance = np.sqrt((across - x - t * along_x) ** 2 + (depth - z - t * along_z) ** 2)
        dark = smoothstep(-distance, -1.25 * radius, -0.6 * radius) * (0.25 + 0.4 * self.sun)
        self.image[region] *= (1.0 - dark)[..., None]

    def ground_coordinates(self, region: tuple[slice, slice]) -> tuple[Array, Array]:
        """Depth Z (n, 1) and X (n, m) of the ground seen in these pixels, which lie below the horizon; metres."""
        height, width = self.mask.shape
        rows = np.arange(*region[0].indices(height), dtype=np.float32)[:, None] + 0.5
        columns = np.arange(*region[1].indices(width), dtype=np.float32)[None] + 0.5
        depth = self.focal * self.eye / np.maximum(rows - self.horizon, 0.3)
        return depth, (columns - self.middle) * depth / self.focal


def draw_sky(view: View, rng: np.random.Generator, top: Array, low: Array, cloud: Array, cover: float) -> None:
    """Fills the image with sky: a gradient, clouds, and a glow around the sun."""
    height, width = view.mask.shape
    sky = view.image[: int(view.horizon) + 2]
    lines = np.arange(len(sky), dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    rise = lines / view.horizon
    sky[:] = (top + (low - top) * smoothstep(rise, 0.0, 1.05)[..., None]) * np.ones((1, width, 1), np.float32)
    shape = fractal_noise(rng, len(sky), width, (3, 3), 5, 0.55)
    opacity = 0.85 * smoothstep(shape, 0.45 - cover, 0.85 - cover) * smoothstep(-rise, -1.0, -0.7)
    # Noise a little further towards the light tells which side of a cloud is lit.
    step = max(1, height // 40)
    relief = shape - np.roll(shape, (-step, step if view.light[0] > 0 else -step), (0, 1))
    shade = 0.9 + np.clip(1.6 * relief, -0.35, 0.35)
    sky += opacity[..., None] * (cloud * shade[..., None] - sky)
    # With the light behind the camera the sun itself is out of sight.
    if view.light[2] < 0:
        sun_x = view.middle + view.light[0] * 0.6 * width
        sun_y = view.horizon - view.light[1] * view.horizon
        distance = ((columns - sun_x) ** 2 + (lines - sun_y) ** 2) / (height * height)
        glow = view.sun * (0.45 * np.exp(-distance * 14.0) + 0.8 * np.exp(-distance * 700.0))
        sky += glow[..., None] * np.array([1.0, 0.93, 0.72], dtype=np.float32)


def draw_ridge(view: View, rng: np.random.Generator, color: Array, label: int, height: float, z: float) -> None:
    """A far silhouette on the horizon, `height` pixels high at most: hills (ground) or a wood (trees)."""
    rows, columns = view.mask.shape
    bumps, gain = (3, 0.45) if label == GROUND else (12, 0.7)
    line = fractal_noise(rng, 8, columns, (1, min(bumps, columns // 8)), 4, gain)[0]
    top = view.horizon - height * (0.55 + 0.45 * np.clip(1.4 * line, -1.0, 1.0))
    first, last = max(0, int(view.horizon - height) - 1), min(rows, int(view.horizon) + 2)
    region = (slice(first, last), slice(0, columns))
    lines = np.arange(first, last, dtype=np.float32)[:, None] + 0.5
    grain = fractal_noise(rng, last - first, columns, (max(1, (last - first) // 8), columns // 8), 3, 0.8)
    lit = 0.85 + (0.7 if label == TREE else 0.35) * grain + 0.3 * np.clip((view.horizon - lines) / height, 0.0, 1.0)
    cover = np.clip(0.5 + lines - top, 0.0, 1.0)
    view.paint(region, cover, color * lit[..., None], label, z)


def draw_ground(
    view: View,
    *,
    soil: Array,
    growth: Array,
    asphalt: Array,
    water: Array,
    road: Road | None,
    lake: tuple[str, float] | None,
) -> None:
    """The ground below the horizon with its water and its road; the sky must be drawn already.

    `soil` is the colour (3,) of bare ground, `growth` of what covers it in patches, `asphalt` of the road and `water`
    of the water below the mirrored sky. `lake` is `far` from a depth on, `left` or `right` from an X on, or None.
    """
    first = max(0, int(view.horizon + 0.5))
    region = (slice(first, view.mask.shape[0]), slice(0, view.mask.shape[1]))
    z, x = view.ground_coordinates(region)
    scale = view.focal / z
    coarse = lookup(view.noise, z * 2.1, x * 2.1)
    fine = lookup(view.noise.T, z * 11.0, x * 11.0)
    # Blades and grit, seen only close by, where a texel is about a pixel.
    grit = view.noise[(z * 47.0).astype(np.intp) & 127, (x * 61.0).astype(np.intp) & 127]
    grit = grit * np.clip(scale / 20.0 - 0.5, 0.0, 1.0)
    patches = smoothstep(coarse + 0.35 * fine, -0.25, 0.25)[..., None]
    detail = 1.0 + (0.45 * fine * np.clip(scale / 12.0, 0.0, 1.0) + 0.15 * coarse + 0.55 * grit)[..., None]
    full = np.ones(x.shape, dtype=np.float32)
    view.paint(region, full, (soil + patches * (growth - soil)) * detail, GROUND, z)

    if lake is not None:
        kind, limit = lake
        if kind == "far":
            inside = (z - limit + 5.0 * coarse) * view.eye * view.focal / (z * z)
        else:
            inside = ((x if kind == "right" else -x) - limit + 2.5 * coarse - 0.1 * z) * scale
        rows = np.arange(first, view.mask.shape[0])
        mirrored = np.clip((2 * view.horizon - rows).astype(int), 0, max(int(view.horizon) - 1, 0))
        ripples = lookup(view.noise, z * 9.0 + 17.0, x * 2.2) * np.clip(4.0 * scale / 12.0, 0.3, 1.0)
        surface = 0.55 * view.image[mirrored] + 0.45 * water
        surface = surface * (0.92 + 0.38 * ripples)[..., None]
        wet = np.clip(0.5 - np.abs(inside + 2.0) / 5.0, 0.0, 0.35)
        view.image[region] *= (1.0 - wet)[..., None]
        view.paint(region, np.clip(0.5 + inside, 0.0, 1.0), surface, WATER, z)

    if road is not None:
        steepness = view.eye * view.focal / (z * z) if road.across else scale
        aside, along = road.from_middle(x, z) * full, (x if road.across else z) * full
        cover = np.clip(0.5 + road.inside(x, z) * steepness * full, 0.0, 1.0)
        worn = 0.06 * stripes(aside + road.half_width / 4, road.half_width / 2, road.half_width / 6, steepness)
        surface = (
            asphalt
            * (1.0 + 0.22 * fine * np.clip(scale / 16.0, 0.0, 1.0) + 0.12 * coarse + 0.25 * grit - worn)[..., None]
        )
        dashed = np.clip(0.5 + (0.09 - np.abs(aside)) * steepness, 0.0, 1.0) * (along % 5.0 < 2.6)
        edges = np.clip(0.5 + (0.08 - np.abs(np.abs(aside) - road.half_width + 0.35)) * steepness, 0.0, 1.0)
        lines = (np.maximum(dashed, edges) * np.clip(0.16 * steepness, 0.0, 0.85))[..., None]
        surface = surface + lines * (np.float32(0.88) - surface)
        view.paint(region, cover, surface, ROAD, z)
