"""The objects of the rendered scenes: buildings, trees, persons and vehicles; all sizes are in metres."""

import math

import numpy as np

from .textures import Array, facade, lookup_grid, smoothstep
from .view import BUILDING, PERSON, TREE, VEHICLE, View


STYLES = ("brick", "plank", "band", "plain")


def draw_building(
    view: View, rng: np.random.Generator, *, x: tuple[float, float], z: tuple[float, float], height: float, wall: Array
) -> None:
    """A box with a front that faces the camera and, where it is seen, a side that runs into the depth.

    `x` holds the left and right ends of the front, `z` the depths of front and back, `wall` the colour (3,) of the
    walls.
    """
    style = STYLES[rng.integers(len(STYLES))]
    glass = view.haze * 0.75
    face_seed = int(rng.integers(2**32))
    near, far = z
    facing_front = 0.62 + 0.5 * view.sun * max(view.light[2], 0.0)
    side = x[0] if x[0] > 0 else x[1] if x[1] < 0 else None
    if side is not None:
        window = view.window((min(side, side * near / far), max(side, side * near / far)), (0.0, height), near)
        if window is not None:
            (lines, columns), _, _ = window
            pixel_x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] + 0.5 - view.middle
            # Every column of the side is one depth: that of X = side on its ray.
            depth = view.focal * side / np.where(np.abs(pixel_x) < 0.5, math.copysign(0.5, side), pixel_x)
            rows = np.arange(lines.start, lines.stop, dtype=np.float32)[:, None] + 0.5
            up = view.eye - (rows - view.horizon) * depth / view.focal
            seen = view.focal / np.clip(depth, near, far)
            cover = np.clip(0.5 + np.minimum(up, height - up) * seen, 0.0, 1.0)
            cover = cover * ((depth >= near - 0.05) & (depth <= far))
            shine = 0.62 + 0.5 * view.sun * max(-view.light[0] if side > 0 else view.light[0], 0.0)
            colors = facade(np.random.default_rng(face_seed), style, wall, glass, depth, up, seen)
            view.paint((lines, columns), cover, colors * np.float32(shine), BUILDING, np.clip(depth, near, far))
    roof = rng.uniform(0.25, 0.5) * min(x[1] - x[0], 9.0) if rng.random() < 0.7 and height < 10 else 0.0
    window = view.window((x[0] - 0.5, x[1] + 0.5), (0.0, height + max(roof, 0.5)), near)
    if window is None:
        return
    region, up, across = window
    scale = view.focal / near
    from_edge = np.minimum(across - x[0], x[1] - across)
    inside = np.clip(0.5 + np.minimum(np.minimum(up, height - up), from_edge) * scale, 0.0, 1.0)
    colors = facade(np.random.default_rng(face_seed), style, wall, glass, across - x[0], up, scale)
    view.paint(region, inside, colors * np.float32(facing_front), BUILDING, near)
    if roof:
        slope = rng.uniform(0.3, 1.0) * 0.5 * (x[1] - x[0]) / roof
        within = np.minimum(
            np.minimum(up - height, height + roof - up), (from_edge + 0.4 - slope * (up - height)) / 1.5
        )
        tile = np.array(rng.choice([(0.55, 0.25, 0.18), (0.3, 0.3, 0.34), (0.42, 0.32, 0.24)]), dtype=np.float32)
        courses = 0.85 + 0.15 * np.sign(np.sin(up * 9.0)) * min(scale / 8.0, 1.0)
        grain = 1.0 + 0.4 * lookup_grid(view.noise, up * 7.0, across * 7.0)
        tiles = tile * (facing_front * courses * grain)[..., None]
        view.paint(region, np.clip(0.5 + within * scale, 0.0, 1.0), tiles, BUILDING, near)
    else:
        cornice = np.clip(0.5 + np.minimum(0.3 - np.abs(up - height - 0.1), from_edge + 0.3) * scale, 0.0, 1.0)
        view.paint(region, cornice, wall * np.float32(0.7 * facing_front), BUILDING, near)


def draw_tree(view: View, rng: np.random.Generator, *, x: float, z: float, height: float, leaf: Array) -> None:
    """A broad-leaved tree of round clumps, or a conifer of layers.

    The trunk is at `x`, at depth `z`; `leaf` is the colour (3,) of the leaves.
    """
    spread = height * rng.uniform(0.28, 0.42)
    conifer = rng.random() < 0.35
    window = view.window((x - spread * 1.3, x + spread * 1.3), (0.0, height * 1.05), z)
    if window is None:
        return
    region, up, across = window
    scale = view.focal / z
    away = across - x
    offset = rng.uniform(0.0, 128.0, size=4).astype(np.float32)
    leaves = lookup_grid(view.noise, up * 9.0 + offset[0], away * 9.0 + offset[1])
    leaves = leaves + min(scale / 40.0, 0.6) * lookup_grid(view.noise, away.T * 31.0, up.T * 31.0).T
    clumps = lookup_grid(view.noise, up * 2.6 + offset[2], away * 2.6 + offset[3])
    thick = 0.035 * height * (1.25 - 0.6 * np.clip(up / height, 0.0, 1.0))
    trunk = np.clip(0.5 + np.minimum(thick - np.abs(away), np.minimum(up, height * 0.6 - up)) * scale, 0.0, 1.0)
    bark = np.array([0.36, 0.27, 0.2], dtype=np.float32) * np.float32(rng.uniform(0.6, 1.3))
    round_trunk = 0.75 + 0.45 * view.light[0] * away / (0.05 * height) + 0.5 * leaves
    view.paint(region, trunk, bark * np.clip(round_trunk, 0.3, 1.4)[..., None], TREE, z)
    if conifer:
        foot = 0.1 * height
        t = np.clip((up - foot) / (height - foot), 0.0, 1.0)
        layers = int(rng.integers(4, 8))
        ragged = 0.72 + 0.28 * (1.0 - (t * layers) % 1.0)
        inside = (
            np.minimum(spread * 0.85 * (1.0 - t) * ragged - np.abs(away), up - foot) + 0.5 * clumps + 0.35 * leaves
        )
        bulge = view.light[0] * away / spread + 0.5 * (1.0 - (t * layers) % 1.0) - 0.2
    else:
        count = int(rng.integers(6, 11))
        angle = rng.uniform(0.0, 2.0 * np.pi, count)
        reach = rng.uniform(0.2, 0.75, count)
        radius = (spread * rng.uniform(0.4, 0.62, count)).astype(np.float32)[:, None, None]
        crown = 0.64 * height
        centre_x = (spread * reach * np.cos(angle)).astype(np.float32)[:, None, None]
        centre_y = (crown + 0.36 * height * reach * np.sin(angle)).astype(np.float32)[:, None, None]
        side, lift = (away[None] - centre_x) / radius, (up[None] - centre_y) / radius
        depth = 1.0 - side * side - lift * lift
        front = np.argmax(depth, axis=0)[None]
        inside = np.take_along_axis(depth, front, axis=0)[0] * 0.5 * spread * 0.55 + 0.55 * clumps + 0.4 * leaves
        bulge = view.light[0] * np.take_along_axis(side + 0 * lift, front, axis=0)[0]
        bulge = 0.6 * bulge + 0.6 * view.light[1] * np.take_along_axis(lift + 0 * side, front, axis=0)[0]
    shade = np.clip(0.78 + (0.2 + 0.4 * view.sun) * bulge + 0.75 * leaves + 0.35 * clumps, 0.25, 1.6)
    view.paint(region, np.clip(0.5 + inside * scale, 0.0, 1.0), leaf * shade[..., None], TREE, z)


def draw_person(view: View, rng: np.random.Generator, *, x: float, z: float) -> None:
    """A standing or walking person in clothes of random colours."""
    height = rng.uniform(1.5, 1.9)
    window = view.window((x - 0.6, x + 0.6), (0.0, height + 0.05), z)
    if window is None:
        return
    region, up, across = window
    scale = view.focal / z
    u, v = (across - x) / height, up / height
    stride, swing, lean = rng.uniform(0.02, 0.13), rng.uniform(0.0, 0.12), float(rng.choice([-1.0, 1.0]))
    skin = np.array(rng.choice([(0.87, 0.68, 0.55), (0.72, 0.5, 0.36), (0.42, 0.28, 0.2)]), dtype=np.float32)
    shirt, trousers = (rng.uniform(0.06, 0.95, 3).astype(np.float32) for _ in range(2))
    hair = np.float32(rng.uniform(0.1, 0.8)) * np.array([0.6, 0.45, 0.3], dtype=np.float32)
    parts = [
        ((-0.03, 0.5), (-stride, 0.02), 0.045, trousers * np.float32(0.85)),
        ((0.03, 0.5), (stride, 0.02), 0.045, trousers),
        ((-0.1 * lean, 0.78), (-0.12 * lean - swing, 0.5), 0.03, shirt * np.float32(0.8)),
        ((0.0, 0.76), (0.0, 0.52), 0.085, shirt),
        ((0.1 * lean, 0.78), (0.12 * lean + swing, 0.5), 0.03, shirt * np.float32(1.1)),
        ((0.0, 0.9), (0.0, 0.93), 0.055, skin),
        ((0.0, 0.955), (0.005, 0.96), 0.05, hair),
    ]
    round_side = np.clip(0.85 + 3.0 * view.light[0] * u, 0.55, 1.2)
    folds = 1.0 + 0.25 * lookup_grid(view.noise, up * 22.0, across * 30.0)
    for (x0, y0), (x1, y1), radius, color in parts:
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0.0, 1.0)
        distance = np.sqrt((u - x0 - t * dx) ** 2 + (v - y0 - t * dy) ** 2)
        cover = np.clip(0.5 + (radius - distance) * scale * height, 0.0, 1.0)
        view.paint(region, cover, color * (round_side * folds)[..., None], PERSON, z)


def draw_vehicle(view: View, rng: np.random.Generator, *, x: float, z: float, kind: int, side_on: bool) -> None:
    """A car (kind 0), van (1) or bus (2), seen from the side or from its end."""
    height = (rng.uniform(1.35, 1.6), rng.uniform(1.9, 2.3), rng.uniform(2.8, 3.2))[kind]
    half_extent = 0.5 * (
        (rng.uniform(3.8, 4.6), rng.uniform(4.6, 5.4), rng.uniform(8.0, 10.0))[kind] if side_on else 1.85
    )
    clip = view.window((x - half_extent - 0.1, x + half_extent + 0.1), (0.0, height + 0.1), z)
    if clip is None:
        return
    region, up, across = clip
    scale = view.focal / z
    ahead = (across - x) * float(rng.choice([-1.0, 1.0]))
    paint = rng.uniform(0.08, 0.92, 3).astype(np.float32)
    gloss = np.clip(0.62 + 0.3 * smoothstep(up, 0.3, height) + 0.25 * view.sun * view.light[2], 0.4, 1.2)
    # The bright line that the sky draws along the flank.
    gloss = (gloss + 0.5 * np.exp(-(((up - 0.52 * height) / (0.05 * height)) ** 2))) * np.ones_like(across)
    belt = (0.58, 0.52, 0.42)[kind] * height
    glass = (view.haze * 0.42) * ((0.55 + 0.6 * smoothstep(up, belt, height)) * np.ones_like(across))[..., None]
    black = np.full(3, 0.07, dtype=np.float32)

    def paint_part(inside: Array, color: Array) -> None:
        view.paint(region, np.clip(0.5 + inside * scale, 0.0, 1.0), color, VEHICLE, z)

    corner = 0.25
    beyond = np.maximum(np.abs(ahead) - half_extent + corner, 0.0) ** 2
    lower = corner - np.sqrt(beyond + np.maximum(np.abs(up - 0.5 * belt - 0.12) - 0.5 * belt + corner, 0.0) ** 2)
    lean = 0.9 if kind == 0 and side_on else 0.22 if kind == 0 else 0.12
    length = half_extent * (0.68 if kind == 0 and side_on else 0.97)
    shift = -0.1 * half_extent if kind == 0 and side_on else 0.0
    cabin = np.minimum(length - lean * np.maximum(up - belt, 0.0) - np.abs(ahead - shift), height - up)
    cabin = np.minimum(cabin, up - belt + 0.3)
    wheel = 0.34 if kind < 2 else 0.48
    wheels = [-0.62 * half_extent, 0.62 * half_extent] if side_on else [-0.72, 0.72]
    paint_part(np.minimum(0.95 * half_extent - np.abs(ahead), np.minimum(up - 0.12, 0.5 - up)), black)
    if not side_on:
        for place_x in wheels:
            paint_part(np.minimum(0.16 - np.abs(ahead - place_x), np.minimum(up, wheel - up)), black)
    paint_part(np.minimum(lower, up - 0.2), paint * gloss[..., None])
    paint_part(cabin, paint * gloss[..., None])
    pillars = np.abs((ahead - shift) % 1.3 - 0.65) - 0.06 if side_on else np.float32(1.0)
    window = np.minimum(np.minimum(cabin - 0.14, up - belt - 0.04), np.minimum(pillars, height - 0.2 - up))
    paint_part(window, glass)
    if side_on:
        for place_x in wheels:
            radius = np.sqrt((ahead - place_x) ** 2 + (up - wheel) ** 2)
            paint_part(wheel - radius, black)
            paint_part(0.55 * wheel - radius, np.full(3, 0.6, dtype=np.float32))
        paint_part(
            0.14 - np.sqrt((ahead - half_extent + 0.1) ** 2 + (up - 0.65) ** 2), np.array([1.0, 0.95, 0.7], np.float32)
        )
    else:
        lamp = np.array([0.85, 0.1, 0.08] if rng.random() < 0.6 else [1.0, 0.95, 0.75], dtype=np.float32)
        for place_x in (-half_extent + 0.24, half_extent - 0.24):
            paint_part(np.minimum(0.17 - np.abs(ahead - place_x), 0.1 - np.abs(up - 0.7)), lamp)
        paint_part(np.minimum(0.3 - np.abs(ahead), 0.08 - np.abs(up - 0.5)), np.full(3, 0.8, dtype=np.float32))
