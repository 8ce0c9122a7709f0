import json
import shutil
import sys

import pytest
import torch
from diffusers_vae import save_vae

from course_lib.cli.autoencoders import DiffusersVAE, OwnVAE, find_autoencoder
from course_lib.nets.vae import ConvVAE
from course_lib.pretrained import save_pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vae")


@pytest.fixture(scope="module")
def model(folder):
    return save_vae(folder, scaling_factor=0.5, shift_factor=0.25)


@pytest.fixture
def images(generator):
    return torch.rand(10, 3, 8, 8, generator=generator) * 2 - 1


def seeded():
    return torch.Generator().manual_seed(3)


def test_latents_of_diffusers_are_shifted_and_scaled(folder, model, images):
    coder = find_autoencoder(str(folder), "cpu")
    assert isinstance(coder, DiffusersVAE)
    assert (coder.channels, coder.latent_shape(8)) == (3, (4, 4, 4))
    with torch.no_grad():
        q = model.encode(images).latent_dist
        coder.batch = 10
        wanted = (q.mean + q.std * torch.randn(q.mean.shape, generator=seeded()) - 0.25) * 0.5
        found = coder.encode(images, seeded())
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(coder.decode(wanted), model.decode(wanted / 0.5 + 0.25).sample)


def test_batches_make_no_difference(folder, model, images):
    coder = find_autoencoder(str(folder), "cpu")
    z = coder.encode(images, seeded())  # eight, then two
    assert z.shape == (10, *coder.latent_shape(8))
    coder.batch = 3
    torch.testing.assert_close(coder.decode(z)[9:], coder.decode(z[9:]))


def test_without_shift(tmp_path):
    model = save_vae(tmp_path)
    coder = find_autoencoder(str(tmp_path))
    assert (coder.scale, coder.shift) == (model.config.scaling_factor, 0)


def test_a_pipeline_has_it_in_a_folder_of_its_own(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path / "vae")
    assert find_autoencoder(str(tmp_path)).latent_shape(8) == (4, 4, 4)


def test_sizes_that_do_not_halve(folder, model, images):
    coder = find_autoencoder(str(folder))
    with pytest.raises(ValueError, match="images must have a side divisible by 2; got 7"):
        coder.latent_shape(7)
    with pytest.raises(ValueError, match="divisible by 2; got 7"):
        coder.encode(images[..., :7], seeded())
    with pytest.raises(ValueError, match="images must have 3 channels for this autoencoder; got 1"):
        coder.encode(images[:, :1], seeded())


def test_weights_missing_another_class_and_no_such_folder(folder, model, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"damaged lacks its weights, diffusion_pytorch_model"):
        find_autoencoder(str(damaged))
    (damaged / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="must be an AutoencoderKL; its config says 'UNet2DModel'"):
        find_autoencoder(str(damaged))
    with pytest.raises(ValueError, match=r"one of .*got 'nowhere'"):
        find_autoencoder("nowhere")


def test_diffusers_not_installed(folder, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl", None)
    with pytest.raises(ValueError, match=r"needs diffusers: pip install 'course-lib\[latents\]'"):
        find_autoencoder(str(folder))


def test_one_of_our_own_by_its_folder(tmp_path, generator):
    with torch.random.fork_rng():
        vae = ConvVAE(8, latent_dim=3, width=4)
    spec = {
        "class_path": "course_lib.nets.vae.ConvVAE",
        "init_args": {"image_size": 8, "latent_dim": 3, "width": 4},
    }
    info = {"model": spec, "recipe": "vae_mnist", "steps": 1, "images": {"data": "digits"}}
    save_pretrained(vae, "small", info, tmp_path)
    coder = find_autoencoder(str(tmp_path))
    assert isinstance(coder, OwnVAE)
    assert coder.latent_shape(8) == (3,)
    images = torch.rand(5, 1, 8, 8, generator=generator)
    mean, log_var = coder.model.encode(images)
    wanted = mean + (log_var / 2).exp() * torch.randn(5, 3, generator=seeded())
    torch.testing.assert_close(coder.encode(images, seeded()), wanted.detach())
    torch.testing.assert_close(coder.decode(wanted), coder.model.decode(wanted).detach())


def test_what_is_no_autoencoder():
    with pytest.raises(ValueError, match=r"must be a ConvVAE, or a folder .* holds a DigitClass"):
        find_autoencoder("digits-classifier")
