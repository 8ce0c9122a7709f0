import pytest
import torch
from torch.nn.functional import conv2d

from course_lib.nets import patchify, position_embedding, unpatchify


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 1, 8, 8), 2), ((3, 3, 12, 8), 4), ((1, 2, 5, 5), 1)]
)
def test_round_trip(shape, patch):
    x = randn(*shape)
    tokens = patchify(x, patch)
    assert tokens.shape == (
        shape[0],
        (shape[2] // patch) * (shape[3] // patch),
        shape[1] * patch**2,
    )
    torch.testing.assert_close(unpatchify(tokens, patch, *shape[2:]), x, rtol=0, atol=0)


def test_a_token_is_a_patch_row_by_row():
    x = randn(2, 3, 4, 6)
    tokens = patchify(x, 2)
    for row in range(2):
        for column in range(3):
            patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(tokens[:, 3 * row + column], patch.flatten(1))


def test_linear_map_of_patches_is_a_strided_convolution():
    x, weight = randn(2, 3, 8, 8), randn(5, 3 * 4 * 4)
    want = conv2d(x, weight.unflatten(1, (3, 4, 4)), stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x, 4) @ weight.T, want, rtol=1e-10, atol=1e-12)


def test_position_embedding_tells_rows_and_columns():
    grid = position_embedding(5, 16).unflatten(0, (5, 5))
    assert grid.shape == (5, 5, 16)
    assert torch.equal(grid[:, :, :8], grid[:, :1, :8].expand(5, 5, 8))  # the row alone
    assert torch.equal(grid[:, :, 8:], grid[:1, :, 8:].expand(5, 5, 8))  # the column alone
    assert torch.equal(grid[:, 0, :8], grid[0, :, 8:])
    flat = grid.flatten(0, 1)
    assert (torch.cdist(flat, flat) + 10 * torch.eye(25)).min() > 0.5
