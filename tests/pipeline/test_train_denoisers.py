"""What the mini models inherit from mini-SD, and the captions that they learn from."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import postdiff
from pipelines.data.procedural import SCENES, SHAPES
from pipelines.training import denoisers, mini, models
from pipelines.training.denoisers import ALPHAS, Batch, inherit, noise_loss, teacher_loss
from pipelines.training.encoders import balance
from pipelines.training.loop import Trainer, block_matrices, half_precision, load_ema, to_tensor
from pipelines.training.transformer import middle
from postdiff.models import minis
from postdiff.models.checkpoints import MINI

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
import train_mini


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    model = mini.unet()
    for parameter in model.parameters():  # no zeros, which would match by chance
        torch.nn.init.normal_(parameter)
    return model


def test_mini_sdxl_inherits_all_but_what_mini_sd_lacks(teacher):
    model = mini.unet_xl()
    assert inherit(model, teacher) == 496
    have, given = model.state_dict(), teacher.state_dict()
    untouched = [k for k, v in have.items() if k in given and v.shape == given[k].shape and not v.equal(given[k])]
    assert all(name.startswith("up_blocks.") for name in untouched)  # those come from a level above
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert have[name].shape == (64, 160)
    assert have[name][:, :96].equal(given[name])
    assert not have[name][:, 96:].any()
    name = "down_blocks.1.attentions.0.proj_in.weight"  # a linear layer here, a 1x1 convolution there
    assert have[name].equal(given[name][:, :, 0, 0])
    assert have["up_blocks.2.resnets.2.conv1.weight"].equal(given["up_blocks.3.resnets.2.conv1.weight"])
    assert not have["add_embedding.linear_2.weight"].any()


def test_mini_bk_sdm_keeps_the_first_and_last_layer_of_a_decoder_level(teacher):
    model = mini.unet_tiny()
    assert inherit(model, teacher) == len(model.state_dict())
    have, given = model.state_dict(), teacher.state_dict()
    assert have["up_blocks.0.resnets.1.conv2.weight"].equal(given["up_blocks.1.resnets.2.conv2.weight"])
    assert have["up_blocks.0.resnets.0.conv2.weight"].equal(given["up_blocks.1.resnets.0.conv2.weight"])
    assert have["down_blocks.1.resnets.0.conv2.weight"].equal(given["down_blocks.1.resnets.0.conv2.weight"])


def test_a_batch_names_its_captions_and_drops_a_tenth(monkeypatch, tmp_path):
    stored = {side: np.full((200, 8, side, side), side, np.float16) for side in (16, 12, 8)}
    stored[16] += np.arange(200, dtype=np.float16)[:, None, None, None]  # so that a latent names its row
    monkeypatch.setattr(denoisers, "latents", lambda work, data: stored)
    monkeypatch.setattr(denoisers, "scaling_factor", lambda stored: 1.0)
    monkeypatch.setattr(denoisers, "N_LATENTS", 200)
    draw = denoisers.batches(tmp_path, SHAPES, {16: 100}, low_until=3)
    dropped = 0
    for step in range(20):
        batch = draw(step, np.random.default_rng(step))
        assert batch.x0.shape == (100, 8, 16, 16)  # a side that is left out is 16 instead
        given = batch.rows >= 0
        assert batch.x0[given, 0, 0, 0].sub(16).equal(batch.rows[given].float())
        assert (batch.rows[~given] == -1).all()
        dropped += int((~given).sum())
        assert (batch.t.sort().values // 10).equal(torch.arange(100))  # one from each of n equal parts
    assert 140 < dropped < 260


def test_muon_gets_the_matrices_of_both_transformers_blocks_and_no_embedding():
    model = torch.nn.ModuleDict({"transformer": mini.transformer(), "text": mini.t5_encoder(mini.t5_tokenizer())})
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for p in block_matrices(model)]
    # 6 blocks: q, k, v, out of two attentions and two feed-forward layers; 3 of T5: q, k, v, o, and three of its gate.
    assert sum(name.startswith("transformer.transformer_blocks.") for name in found) == 6 * 10
    assert sum(name.startswith("text.encoder.block.") for name in found) == 3 * 7
    assert len(found) == 81
    assert not [name for name in found if "table" in name or "bias" in name or "shared" in name]


def test_refining_draws_seven_tenths_of_the_times_where_forms_are_made():
    t = middle(torch.arange(1000))
    assert ((t >= 100) & (t < 600)).float().mean() == pytest.approx(0.7, abs=0.002)
    assert (t < 100).float().mean() == pytest.approx(0.1, abs=0.002)
    assert t.min() == 0
    assert t.max() < 1000
    assert (t.diff() >= 0).all()


def test_the_distance_to_the_teacher_is_weighted_by_the_signal():
    x0, noise, t = torch.zeros(2, 8, 4, 4), torch.zeros(2, 8, 4, 4), torch.tensor([20, 500])
    batch, told = Batch(x0, noise, t, torch.tensor([0, 1])), torch.zeros(2, 1, 1)
    teacher = lambda noisy, t, words, return_dict: (torch.ones_like(noisy),)  # noqa: E731
    loss, numbers = teacher_loss(torch.full_like(x0, 3.0), batch, teacher, told)
    assert numbers == {"to_teacher_4": 4.0}
    early, late = float(ALPHAS[20]), float(ALPHAS[500])
    assert float(loss) == pytest.approx(4 * (5 * (1 - early) / early**1.5 + late**-0.5) / 2)


def test_the_noises_error_is_weighted_by_the_signal_and_up_where_little_of_it_is_left():
    """Steps of SD1.5's schedule: alpha is 0.99915, 0.14 and 0.0047 there."""
    times = torch.tensor([0, 624, 999])
    batch = Batch(torch.zeros(3, 8, 4, 4), torch.zeros(3, 8, 4, 4), times, torch.zeros(3, dtype=torch.long))
    alpha = ALPHAS[times]
    weights = [
        float(noise_loss(torch.ones(1, 8, 4, 4), Batch(*(part[i : i + 1] for part in vars(batch).values())))[0])
        for i in range(3)
    ]
    assert weights[0] == pytest.approx(5 / 1175, rel=0.01)
    assert weights[1:] == pytest.approx((alpha[1:] ** -0.5).tolist())
    assert noise_loss(torch.ones(3, 8, 4, 4), batch)[0] == pytest.approx(np.mean(weights))


def test_checkpoints_restored_from_the_shipped_folders_hold_their_weights(tmp_path):
    models.restore(tmp_path, MINI, SHAPES)
    model = torch.nn.ModuleDict({"transformer": mini.transformer(), "text": mini.t5_encoder(mini.t5_tokenizer())})
    load_ema(model, tmp_path, "pixart")
    shipped = postdiff.load("mini-pixart", device="cpu").pipe
    for part, module in (("transformer", shipped.transformer), ("text", shipped.text_encoder)):
        have = model[part].state_dict()
        assert all(value.equal(have[name]) for name, value in module.state_dict().items())
    assert load_ema(mini.autoencoder(), tmp_path, "autoencoder")
    stages = {"autoencoder", "clip", "clip-reads", "unet", "tiny", "lcm", "xl", "pixart"}
    assert {file.stem for file in tmp_path.iterdir()} == {*stages, "data"}
    with pytest.raises(SystemExit, match="was restored from finished weights"):
        Trainer("pixart", model, 10, 1e-3, tmp_path)
    with pytest.raises(SystemExit, match=r"expected a folder without checkpoints, found autoencoder\.pt"):
        models.restore(tmp_path, MINI, SHAPES)


def test_a_work_folder_is_of_one_data_set(tmp_path):
    models.claim(tmp_path / "work", SHAPES)
    models.claim(tmp_path / "work", SHAPES)
    with pytest.raises(ValueError, match=r"--work .*work is of shapes: expected a folder of its own for scenes"):
        models.claim(tmp_path / "work", SCENES)


def test_models_of_scenes_have_names_of_their_own():
    assert models.folder_name("mini-sd", SHAPES) == "mini-sd"
    assert models.folder_name("mini-sd", SCENES) == "mini-sd-scenes"
    with pytest.raises(ValueError, match="mini-clip is of shapes alone"):
        train_mini.parse(["clip", "--data", "scenes", "--work", "work"])


def test_a_model_of_scenes_is_exported_beside_the_shipped_one_and_says_its_size(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(models, "pipeline", lambda name, work, data: (name, data.name))
    monkeypatch.setattr(mini, "save", lambda pipe, folder: written.update({folder: pipe}))
    monkeypatch.setattr(models, "resolve", lambda folder: folder)
    monkeypatch.setattr(models, "write_run", lambda spec, folder, **run: written.update({spec: run}))
    monkeypatch.setattr(models.minis, "write_sums", lambda out: None)
    models.export(tmp_path / "work", tmp_path, ["mini-pixart"], SCENES)
    assert written == {tmp_path / "mini-pixart-scenes": {"guidance": 4.0, "prompts": "scenes", "size": 128}}
    models.export(tmp_path / "other", tmp_path, ["mini-sd"], SHAPES)
    assert written[tmp_path / "mini-sd"] == {"guidance": 2.0, "prompts": "shapes"}


def test_weights_in_common_are_one_file_that_no_later_export_changes(tmp_path):
    for name, weights in (("mini-sd", b"first"), ("mini-lcm", b"first"), ("mini-pixart", b"second")):
        (tmp_path / name / "vae").mkdir(parents=True)
        (tmp_path / name / "vae" / "model.safetensors").write_bytes(weights)
    sd, lcm, pixart = (tmp_path / name / "vae/model.safetensors" for name in ("mini-sd", "mini-lcm", "mini-pixart"))
    models.share(tmp_path)
    assert [file.is_symlink() for file in (sd, lcm, pixart)] == [False, True, False]
    assert lcm.readlink() == Path("../../mini-sd/vae/model.safetensors")  # wherever the folder lies
    models.share(tmp_path)
    assert lcm.samefile(sd)
    models.unshare(tmp_path)
    sd.write_bytes(b"trained again")
    models.share(tmp_path)
    assert [file.read_bytes() for file in (sd, lcm, pixart)] == [b"trained again", b"first", b"second"]


def test_an_export_writes_no_model_through_a_link(tmp_path, monkeypatch):
    """mini-LCM's autoencoder is mini-SD's file, until mini-SD has another."""
    monkeypatch.setattr(models, "resolve", lambda folder: folder)
    monkeypatch.setattr(models, "write_run", lambda spec, folder, **run: None)
    monkeypatch.setattr(models, "pipeline", lambda name, work, data: name)

    def export(names, weights):
        def save(pipe, folder):
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "vae").mkdir(parents=True)
            (folder / "vae" / "model.safetensors").write_bytes(weights)

        monkeypatch.setattr(mini, "save", save)
        models.export(tmp_path / "work", tmp_path / "out", names, SHAPES)

    export(["mini-sd", "mini-lcm"], b"first")
    lcm = tmp_path / "out/mini-lcm/vae/model.safetensors"
    assert lcm.is_symlink()
    sums = minis.read_sums(tmp_path / "out")
    export(["mini-sd"], b"trained again")
    assert lcm.read_bytes() == b"first"
    assert not lcm.is_symlink()
    assert minis.read_sums(tmp_path / "out")["mini-lcm/vae/model.safetensors"] == sums["mini-lcm/vae/model.safetensors"]


def test_what_is_not_there_is_not_restored(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*mini-sd-scenes, whose parts the others share"):
        models.restore(tmp_path / "work", tmp_path, SCENES)


@pytest.mark.parametrize(("amx", "avx512"), [(True, False), (False, True), (False, False)])
def test_half_precision_is_that_of_processors_that_multiply_in_it(amx, avx512, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    half = amx or avx512
    with half_precision():
        assert torch.is_autocast_enabled("cpu") == half
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if half else torch.float32)


def test_muon_gets_a_unets_kernels_and_matrices_and_neither_its_ends_nor_an_embedding():
    model = torch.nn.ModuleDict({"unet": mini.unet(), "text": mini.text_encoder(mini.tokenizer())})
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)] for p in block_matrices(model)}
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
    ends = {"unet.conv_in.weight", "unet.conv_out.weight"}
    assert {name for name in matrices - chosen if "embedding" not in name} == ends
    assert {"unet.mid_block.resnets.0.conv1.weight", "text.encoder.layers.0.mlp.fc1.weight"} <= chosen
    model["text"].encoder.layers[-1].requires_grad_(False)  # as mini-SDXL's, which is not read
    learned = {names[id(p)] for p in block_matrices(model)}
    assert {name.rpartition("layers.")[2][0] for name in chosen - learned} == {"1"}
    assert len(chosen - learned) == 6


def test_balancing_an_autoencoder_changes_no_image_and_takes_the_root_of_its_latents_covariance():
    torch.manual_seed(0)
    vae = mini.autoencoder(SCENES).eval()
    vae.quant_conv.weight.data[:, 0] *= 8  # one direction far wider than the others
    images = to_tensor(SCENES.drawn([SCENES.scene("train", i) for i in range(8)]))

    def covariance():
        means = vae.encode(images).latent_dist.mean.transpose(0, 1).flatten(1)
        return means.cov(), means.mean(1), vae.encode(images).latent_dist.var.mean((0, 2, 3))

    with torch.no_grad():
        before, _, variance = covariance()
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
        balance(vae, images)
        after, mean, mixed = covariance()
        again = vae.decode(vae.encode(images).latent_dist.mean).sample
        torch.testing.assert_close(again, decoded, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(after @ after, before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
        assert mean.abs().max() < 1e-3 * after.diagonal().sqrt().max()
        values, directions = torch.linalg.eigh(before)
        mix = directions @ torch.diag(values**-0.25) @ directions.T
        torch.testing.assert_close(mixed, mix.square() @ variance, rtol=1e-3, atol=1e-6)
