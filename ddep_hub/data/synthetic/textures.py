"""Noise and surface patterns of the rendered scenes; all arrays are float32 and mostly in 0..1."""

from functools import lru_cache

import numpy as np


Array = np.ndarray


def smoothstep(values: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, and a smooth rise between them."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


@lru_cache(maxsize=256)
def _interpolation_points(length: int, cells: int) -> tuple[Array, Array, Array]:
    """For `length` places on a periodic line of `cells` values: the values before and after, and how far between."""
    position = (np.arange(length) + 0.5) * cells / length
    lower = np.floor(position).astype(np.intp)
    fraction = smoothstep(position - lower, 0.0, 1.0).astype(np.float32)
    return lower % cells, (lower + 1) % cells, fraction


def _stretch(grid: Array, height: int, width: int) -> Array:
    # Not a product with an interpolation matrix: threads of a BLAS library cost more than they save at this size,
    # and round differently from machine to machine.
    lower, upper, fraction = _interpolation_points(height, grid.shape[0])
    lines = grid[lower]
    lines += fraction[:, None] * (grid[upper] - lines)
    lower, upper, fraction = _interpolation_points(width, grid.shape[1])
    picture = lines[:, lower]
    picture += fraction * (lines[:, upper] - picture)
    return picture


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, cells: tuple[int, int], octaves: int, gain: float = 0.5
) -> Array:
    """Value noise (height, width) summed over octaves, periodic on both axes; its mean is near 0, values are in -1..1.

    The coarsest octave has `cells` random values along height and width; each further one doubles them, at `gain`
    times the amplitude. Octaves finer than a pixel are skipped.
    """
    total = np.zeros((height, width), dtype=np.float32)
    amplitude, weight = 1.0, 0.0
    rows, columns = cells
    for _ in range(octaves):
        if rows > height or columns > width:
            break
        grid = 2.0 * rng.random((rows, columns), dtype=np.float32) - 1.0
        total += amplitude * _stretch(grid, height, width)
        weight += amplitude
        amplitude *= gain
        rows, columns = 2 * rows, 2 * columns
    return total / max(weight, 1e-6)


def lookup(texture: Array, y: Array, x: Array) -> Array:
    """Reads a periodic texture (n, m) bilinearly at rows `y` and columns `x` in texels, which are broadcast.

    n and m are powers of two.
    """
    rows, columns = texture.shape
    top, left = np.floor(y), np.floor(x)
    down, right = (y - top).astype(np.float32), (x - left).astype(np.float32)
    upper_row, column = top.astype(np.intp) & (rows - 1), left.astype(np.intp) & (columns - 1)
    lower_row, next_column = (upper_row + 1) & (rows - 1), (column + 1) & (columns - 1)
    flat = texture.ravel()
    upper, lower = flat.take(upper_row * columns + column), flat.take(lower_row * columns + column)
    upper += right * (flat.take(upper_row * columns + next_column) - upper)
    lower += right * (flat.take(lower_row * columns + next_column) - lower)
    upper += down * (lower - upper)
    return upper


def lookup_grid(texture: Array, y: Array, x: Array) -> Array:
    """`lookup` on the grid of a column `y` (n, 1) and a row `x` (1, m); much faster, as the axes separate."""
    rows, columns = texture.shape
    left = np.floor(x[0]).astype(np.int32)
    right = (x[0] - left).astype(np.float32)
    strips = texture[:, left % columns] * (1 - right) + texture[:, (left + 1) % columns] * right
    top = np.floor(y[:, 0]).astype(np.int32)
    down = (y[:, :1] - top[:, None]).astype(np.float32)
    return np.asarray(strips[top % rows] * (1 - down) + strips[(top + 1) % rows] * down)


def stripes(position: Array, period: float, width: float, pixels_per_unit: Array | float) -> Array:
    """Soft stripes: 1 within `width` of each multiple of `period`, faded where a stripe is finer than a pixel."""
    distance = np.abs(position / period - np.floor(position / period) - 0.5) * period
    inside = np.clip(0.5 + (0.5 * width - distance) * pixels_per_unit, 0.0, 1.0)
    return np.asarray(inside * np.clip(width * pixels_per_unit, 0.0, 1.0))


def facade(
    rng: np.random.Generator,
    style: str,
    wall: Array,
    glass: Array,
    u: Array,
    v: Array,
    pixels_per_metre: Array | float,
) -> Array:
    """Colours (n, m, 3) of a wall with windows.

    Args:
        rng: Source of window sizes and of which windows are lit.
        style: `brick`, `plank`, `band` or `plain`.
        wall: Colour (3,) of the wall.
        glass: Colour (3,) that dark windows mirror.
        u: Metres along the wall, of a shape that broadcasts with `v`.
        v: Metres above the ground.
        pixels_per_metre: Scale along the wall, which decides how much detail shows.
    """
    u, v = np.broadcast_arrays(u, v)
    tone: Array = np.ones(u.shape, dtype=np.float32)
    if style == "brick":
        course = np.floor(v / 0.3)
        joints = stripes(v, 0.3, 0.06, pixels_per_metre) + stripes(u + 0.35 * course, 0.7, 0.06, pixels_per_metre)
        tone = tone - 0.28 * np.minimum(joints, 1.0)
    elif style == "plank":
        tone = tone - 0.3 * stripes(u, 0.5, 0.08, pixels_per_metre)
    elif style == "band":
        tone = tone + 0.22 * (stripes(v, 3.0, 0.9, pixels_per_metre) - 0.4)
    tone = tone * (0.86 + 0.14 * smoothstep(v, 0.0, 2.5))
    storey, bay = rng.uniform(2.8, 3.6), rng.uniform(1.7, 3.4)
    half_width, half_height = rng.uniform(0.25, 0.4) * bay, rng.uniform(0.25, 0.36) * storey
    column, row = np.floor(u / bay), np.floor(v / storey)
    across, up = np.abs(u / bay - column - 0.5) * bay, np.abs(v / storey - row - 0.55) * storey
    opening = np.clip(0.5 + np.minimum(half_width - across, half_height - up) * pixels_per_metre, 0.0, 1.0)
    frame = np.clip(0.5 + np.minimum(half_width + 0.14 - across, half_height + 0.14 - up) * pixels_per_metre, 0.0, 1.0)
    shades = rng.random((16, 16), dtype=np.float32)
    shade = shades[row.astype(np.int32) % 16, column.astype(np.int32) % 16]
    lit = (shade > 0.86)[..., None]
    warm = np.array([0.98, 0.84, 0.52], dtype=np.float32)
    # A pane mirrors more sky towards its top.
    pane = glass * (0.25 + 0.45 * shade + 0.2 * (v / storey - row))[..., None]
    pane = np.where(lit, warm, pane)
    colors = wall * tone[..., None]
    colors = colors + (frame * 0.55)[..., None] * (np.float32(0.85) - colors)
    return np.asarray(colors + opening[..., None] * (pane - colors), dtype=np.float32)


def soften(image: Array, amount: float) -> Array:
    """Blurs with the kernel (amount, 1 - 2 * amount, amount) on both axes; edges repeat."""
    for axis in (0, 1):
        source = np.moveaxis(image, axis, 0)
        blurred = (1.0 - 2.0 * amount) * source
        blurred[1:] += amount * source[:-1]
        blurred[:-1] += amount * source[1:]
        blurred[[0, -1]] += amount * source[[0, -1]]
        image = np.moveaxis(blurred, 0, axis)
    return image
