"""A version's layout is the same at both ends, and every tensor lies where its dtype can be read."""

from __future__ import annotations

from actors.transfer.layout import ALIGNMENT, Layout, layout_from, layout_of

SHAPES = {"embed": (7, 3), "router.bias": (5,), "scale": (), "head": (2, 3)}


def test_precise_tensors_travel_in_float32_and_the_rest_in_the_dtype_of_versions() -> None:
    layout = layout_of(SHAPES, "bfloat16", precise=("router.bias",))
    assert layout.names == tuple(SHAPES) and layout.by_name == SHAPES
    assert layout.dtypes == ("bfloat16", "float32", "bfloat16", "bfloat16")
    assert layout.sizes == (42, 20, 2, 12)


def test_tensors_lie_apart_and_aligned_in_a_buffer() -> None:
    layout = layout_of(SHAPES, "bfloat16", precise=("router.bias",))
    ends = [start + size for start, size in zip(layout.offsets[:-1], layout.sizes, strict=True)]
    assert all(end <= start for end, start in zip(ends, layout.offsets[1:], strict=True))
    assert all(start % ALIGNMENT == 0 for start in layout.offsets)


def test_a_layout_passes_through_plain_values() -> None:
    layout = layout_of(SHAPES, "float32")
    assert layout_from(layout.plain) == layout
    assert layout.update == {
        "names": [*SHAPES],
        "dtype_names": ["float32"] * 4,
        "shapes": [[7, 3], [5], [], [2, 3]],
    }
    assert Layout((), (), ()).offsets == (0,)
