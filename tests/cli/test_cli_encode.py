import json

import numpy as np
import pytest
import torch
from diffusers_vae import save_vae
from PIL import Image

from course_lib import cli
from course_lib.cli import encode
from course_lib.cli.autoencoders import find_autoencoder
from course_lib.data import latents, latents_info
from course_lib.data.latents import RECORD


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    save_vae(folder)
    return folder


def picture(path, size=(12, 8), seed=0, mode="RGB"):
    """A random image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def photos(tmp_path):
    """Twelve images in two sub-folders."""
    for n in range(12):
        picture(tmp_path / "photos" / "ab"[n % 2] / f"{n:02d}.png", seed=n)
    (tmp_path / "photos" / "a" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def run(images, vae, output, *options):
    names = {"--images": images, "--autoencoder": vae, "--output": output}
    return cli.main(["encode", *(str(part) for pair in names.items() for part in pair), *options])


def test_latents_of_images_with_classes(photos, vae, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(encode, "SHARD", 5)
    output = tmp_path / "latents"
    assert run(photos, vae, output, "--size", "8", "--batch-size", "2", "--seed", "7") == 0
    assert capsys.readouterr().out == f"{output}: 12 latents, 4x4x4 in 2 classes\n"
    assert len(list(output.glob("*.safetensors"))) == 3
    assert latents_info(output) == ((4, 4, 4), 2, str(vae))
    made = json.loads((output / RECORD).read_text())
    assert (made["number"], made["classes"], made["size"], made["seed"]) == (12, ["a", "b"], 8, 7)
    files = [photos / "ab"[k] / f"{n:02d}.png" for k in (0, 1) for n in range(k, 12, 2)]
    images = torch.stack([encode.read_image(file, 8, 3) for file in files])
    # Each file of latents begins a batch: 2, 2, 1; 2, 2, 1; 2.
    coder, generator = find_autoencoder(str(vae), "cpu"), torch.Generator().manual_seed(7)
    parts = images.split([2, 2, 1, 2, 2, 1, 2])
    wanted = torch.cat([coder.encode(part, generator) for part in parts])
    train, labels = latents(output)
    test, test_labels = latents(output, "test")
    torch.testing.assert_close(test, wanted[::10], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(train[:9], wanted[1:10], atol=1e-3, rtol=1e-3)
    assert (labels.tolist(), test_labels.tolist()) == ([0] * 5 + [1] * 5, [0, 1])


def test_images_in_the_folder_itself_have_no_classes(photos, vae, tmp_path, capsys):
    picture(photos / "one.jpeg")
    assert run(photos, vae, tmp_path / "out", "--size", "8") == 0
    assert capsys.readouterr().out.endswith(": 13 latents, 4x4x4\n")
    assert latents(tmp_path / "out")[1] is None


def test_our_own_autoencoder_encodes_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in" / "one.PNG")
    assert run("in", "mnist-vae", "out", "--size", "28", "--device", "cpu") == 0
    assert latents_info("out") == ((64,), 0, "mnist-vae")


def test_images_are_cut_to_their_central_square_and_scaled(tmp_path):
    pixels = picture(tmp_path / "wide.png", (12, 8))
    found = encode.read_image(tmp_path / "wide.png", 8, 3)
    wanted = torch.tensor(pixels[:, 2:10]).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(found, wanted)
    Image.new("RGB", (64, 128), (255, 0, 51)).save(tmp_path / "tall.png")
    found = encode.read_image(tmp_path / "tall.png", 16, 3)
    assert found.shape == (3, 16, 16)
    torch.testing.assert_close(found[:, 5, 5], torch.tensor([1.0, -1.0, -0.6]))
    grey = encode.read_image(tmp_path / "tall.png", 16, 1)
    assert grey.shape == (1, 16, 16)
    torch.testing.assert_close(grey.mean(), torch.tensor(2 * 82 / 255 - 1), atol=1e-5, rtol=0)


def test_photographs_are_turned_upright(tmp_path):
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # the upper half
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned: the upper side is on the right
    image.save(tmp_path / "turned.png", exif=turned)
    found = encode.read_image(tmp_path / "turned.png", 8, 1)[0]
    assert found[:, 4:].min() == 1
    assert found[:, :4].max() == -1


def test_what_was_left_by_a_killed_run_is_made_again(photos, vae, tmp_path, monkeypatch):
    output, written = tmp_path / "new" / "out", encode.write_latents

    def killed(*arguments):
        written(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "write_latents", killed)
        patch.setattr(encode, "SHARD", 2)
        assert run(photos, vae, output, "--size", "8") == 130
    assert not output.exists()
    assert run(photos, vae, output, "--size", "8") == 0
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert len(list(output.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "nowhere"}, "there is no folder nowhere"),
        ({"images": "empty"}, "empty holds no images (.png, .jpg, .jpeg)"),
        ({"images": "broken"}, "one.png cannot be read"),
        ({"images": "cut"}, "two.png cannot be read"),
        ({"autoencoder": "nowhere"}, "got 'nowhere'"),
        ({"output": "empty"}, "empty exists: name a new folder with --output"),
        ({"size": "9"}, "images must have a side divisible by 2; got 9"),
        ({"size": "0"}, "--size must be at least 1; got 0"),
        ({"batch-size": "0"}, "--batch-size must be at least 1; got 0"),
    ],
)
def test_errors(options, message, photos, vae, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "one.png").write_text("no image")
    picture(tmp_path / "cut" / "two.png")
    (tmp_path / "cut" / "two.png").write_bytes((tmp_path / "cut" / "two.png").read_bytes()[:100])
    given = {"images": "photos", "autoencoder": str(vae), "output": "out", "size": "8"} | options
    assert cli.main(["encode", *(a for k, v in given.items() for a in (f"--{k}", v))]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
