"""The mini models' training loop: killed and resumed, it ends with the same weights; Muon is torch's, in float32."""

import contextlib
import multiprocessing

import pytest
import torch
import torch.distributed as dist

from pipelines.data.procedural import SHAPES
from pipelines.training import encoders, loop, mini


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def single_precision(monkeypatch):
    monkeypatch.setattr(loop, "half_precision", contextlib.nullcontext)


def trained(work, stop_at=None, broken_at=None, **kept):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))

    def loss_of(step, rng):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.from_numpy(rng.normal(size=(16, 6))).float() * (torch.inf if step == broken_at else 1)
        return (model(x) - x[:, :4]).square().mean(), {}

    work.mkdir(exist_ok=True)
    loop.Trainer("toy", model, 8, 1e-2, work, matrices=[model[2].weight], **kept).run(loss_of)
    return torch.load(work / "toy.pt", weights_only=True)


def test_training_killed_and_resumed_ends_with_the_same_weights(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", stop_at=5)
    resumed = trained(tmp_path / "cut")
    for kind in ("model", "ema"):
        assert all(torch.equal(value, resumed[kind][name]) for name, value in whole[kind].items())


def test_training_that_diverges_stops_at_its_step_and_writes_nothing(alone, tmp_path):
    with pytest.raises(FloatingPointError, match=r"^toy diverged: the loss of step 4 is (nan|inf), the norm"):
        trained(tmp_path / "broken", broken_at=3)
    assert not (tmp_path / "broken" / "toy.pt").exists()


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_takes_the_steps_of_torchs_within_the_precision_of_bfloat16(shape, single_precision):
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizers = (
        loop.Muon([ours], lr=0.01),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    before = ours.detach().clone()
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - theirs).norm() < 0.03 * (ours - before).norm()


def test_muon_takes_a_kernel_as_its_matrix_and_parameters_of_one_shape_as_each_alone(single_precision):
    torch.manual_seed(0)
    values = [torch.randn(8, 6, 3, 3), torch.randn(8, 54), torch.randn(8, 54)]
    grads = [torch.randn_like(value) for value in values]

    def stepped(values, grads):
        params = [torch.nn.Parameter(value.clone()) for value in values]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        loop.Muon(params, lr=0.01).step()
        return [p.detach() for p in params]

    together = stepped(values, grads)
    for value, grad, changed in zip(values, grads, together, strict=True):
        (alone,) = stepped([value.flatten(1)], [grad.flatten(1)])
        assert torch.dist(alone.view_as(changed), changed) < 1e-4 * torch.dist(value, changed)


def test_an_orthogonal_matrix_has_singular_values_near_one_and_the_same_directions():
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(8, 24), full_matrices=False)
    found = loop.orthogonal(u @ torch.diag(s) @ v)
    values = torch.diagonal(u.T @ found @ v.T)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.dist(found, u @ torch.diag(values) @ v) < 1e-4


def test_a_worker_whose_launcher_is_gone_before_its_first_step_takes_none(alone, tmp_path, monkeypatch):
    """Its parent is another process by then, which cannot be told from one that started it."""
    context = multiprocessing.get_context("spawn")
    gone = context.Process(target=print)
    gone.start()
    gone.join()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: gone)
    with pytest.raises(SystemExit, match="the process that started this worker is gone"):
        trained(tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


def test_restored_weights_are_trained_on_from_where_they_are_and_resumed_like_others(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    with pytest.raises(SystemExit, match="expected weights to train on, found no "):
        trained(tmp_path / "a", on=True)
    first = trained(tmp_path / "a")
    with pytest.raises(SystemExit, match=r"toy\.pt is of another schedule"):
        trained(tmp_path / "a", on=True)
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        torch.save({"ema": first["ema"]}, tmp_path / name / "toy.pt")
    with pytest.raises(SystemExit, match="was restored from finished weights"):
        trained(tmp_path / "b")
    whole = trained(tmp_path / "b", on=True)
    assert whole["step"] == 8
    moved = {key: float((value - first["ema"][key]).abs().max()) for key, value in whole["model"].items()}
    assert all(0 < distance < 0.1 for distance in moved.values())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "c", on=True, stop_at=5)
    again = trained(tmp_path / "c", on=True)
    assert all(value.equal(whole["model"][key]) for key, value in again["model"].items())


def test_a_trained_autoencoder_is_balanced_once_and_is_finished_then(alone, tmp_path):
    encoders.train_autoencoder(tmp_path, SHAPES, steps=1)
    file = tmp_path / "autoencoder.pt"
    written = file.read_bytes()
    vae = loop.load_ema(mini.autoencoder(SHAPES), tmp_path, "autoencoder")
    images = loop.to_tensor(SHAPES.drawn([SHAPES.scene("train", i) for i in range(512)]))
    means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)]).transpose(0, 1).flatten(1)
    assert means.mean(1).abs().max() < 1e-3 * means.std()
    encoders.train_autoencoder(tmp_path, SHAPES, steps=2)
    assert file.read_bytes() == written


def test_latents_that_do_not_vary_cannot_be_balanced():
    vae = mini.autoencoder(SHAPES)
    torch.nn.init.zeros_(vae.quant_conv.weight)
    with pytest.raises(ValueError, match="expected latents that vary in all 8 directions, got variances"):
        encoders.balance(vae, torch.rand(2, 3, 64, 64))
