"""Which losses count as a mean over examples, and what is said of those that do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, soft_margin_loss

from losslandscape.mean_check import _alike
from losslandscape.operators import HessianOperator


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs=4, outputs=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs)


def sorted_by_class(examples=60):
    """Confident right answers to examples in the order of their class."""
    y = torch.arange(3).repeat_interleave(examples // 3)
    return torch.eye(3)[y] + 0.01 * normal(examples, 3), y


def sure(scale=1.0):
    model = nn.Linear(3, 3, bias=False)
    model.weight.data = scale * torch.eye(3)
    return model


class TimeFirst(nn.Module):
    """Outputs ``(time, example, class)``."""

    def __init__(self, times):
        super().__init__()
        self.inner, self.times = linear(4, 3 * times), times

    def forward(self, x):
        return self.inner(x).reshape(len(x), self.times, 3).transpose(0, 1)


class Named(nn.Module):
    """Outputs in a dict, with something that is none."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return {"logits": self.inner(x), "cache": None}


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        return self.inner(x) + torch.tensor([0.0, 0.0, -torch.inf])


def shifted():
    model = linear(999, 1)
    model.bias.data += 1e6
    return model


def interpolating():
    x, model = normal(100, 999), linear(999, 1)
    model.weight.data *= 1e6
    return model, mse_loss, (x, model(x).detach() + normal(100, 1, seed=1))


def accepted():
    x, y = normal(23, 4), torch.randint(3, (23,), generator=torch.Generator().manual_seed(1))
    single = (linear(), cross_entropy, (x, y))

    many = normal(23, 999)  # sums long enough to round differently in parts of a batch
    signs = torch.where(torch.arange(24) % 2 == 0, 1e6, -1e6)
    returns = torch.stack([0 * signs, signs], dim=1)

    def policy(outputs, targets):
        chosen = outputs.log_softmax(1).gather(1, targets[:, :1].long())[:, 0]
        return -(chosen * targets[:, 1]).mean()

    class Cast(nn.Module):
        def forward(self, x):
            return x.double()

    def ctc(outputs, targets):
        times, examples = outputs.shape[:2]
        lengths = torch.full((examples,), times), torch.full((examples,), targets.shape[1])
        return nn.functional.ctc_loss(outputs.log_softmax(2), targets, *lengths, blank=0)

    def over_time(outputs, targets):
        return cross_entropy(outputs.flatten(0, 1), targets.T.flatten())

    class Activity(nn.Module):
        """Cross-entropy plus what a hook has kept of the hidden layer."""

        def __init__(self, layer):
            super().__init__()
            layer.register_forward_hook(lambda _, __, out: setattr(self, "kept", out))

        def forward(self, outputs, targets):
            return cross_entropy(outputs, targets) + self.kept.pow(2).mean()

    hidden = nn.Sequential(linear(4, 5), nn.Tanh(), linear(5, 3))
    first = torch.randint(1, 3, (5, 2), generator=torch.Generator().manual_seed(2))
    return {
        "single precision": single,
        "targets in double precision": (linear(999), mse_loss, (many, 99 * normal(23, 3).double())),
        "outputs in double precision": (
            nn.Sequential(linear(999), Cast()),
            mse_loss,
            (many, 99 * normal(23, 3).double()),
        ),
        "terms of both signs": (linear(), policy, (1e-6 * normal(24, 4), returns)),
        "CTC, as many times as examples": (TimeFirst(5), ctc, (x[:5], first)),
        "time first": (TimeFirst(5), over_time, (x[:5], y[:25].repeat(2)[:25].reshape(5, 5))),
        "a hook": (hidden, Activity(hidden[1]), (x, y)),
        "signed integer labels": (linear(4, 1), soft_margin_loss, (x, 2 * (y[:, None] % 2) - 1)),
        "unsigned labels": (
            linear(),
            lambda outputs, targets: cross_entropy(outputs, targets.long()),
            (x, y.to(torch.uint16)),
        ),
        "outputs with a large offset": (
            shifted(),
            lambda o, t: mse_loss(o - 1e6, t),
            (many, x[:, :1]),
        ),
        "outputs far larger than what is left of the loss": interpolating(),
        "a loss that works in place": (
            linear(),
            lambda outputs, targets: outputs.sub_(targets).pow(2).mean(),
            (x, normal(23, 3)),
        ),
        "outputs in a dict": (
            Named(linear()),
            lambda outputs, targets: cross_entropy(outputs["logits"], targets),
            (x, y),
        ),
        "masked outputs": (Masked(), cross_entropy, (x, y % 2)),
        "all outputs right": (sure(1000.0), cross_entropy, sorted_by_class()),
        "a minimum with loss 0": (linear(), mse_loss, (0 * x, linear()(0 * x).detach())),
    }


@pytest.mark.parametrize("name", accepted())
@pytest.mark.parametrize("chunk_size", [1, 5, 128])
def test_accepted(name, chunk_size):
    model, loss_fn, data = accepted()[name]
    H = HessianOperator(model, loss_fn, data, chunk_size=chunk_size)
    if "CTC" not in name:  # torch has no second derivative of it; its gradient noise can be had
        assert torch.isfinite(H @ torch.ones(H.shape[0])).all()


def test_the_loss_may_have_chance_of_its_own_where_dropout_may():
    def noisy(outputs, targets):
        return cross_entropy(outputs + torch.randn_like(outputs), targets)

    data = sorted_by_class()
    HessianOperator(sure(), noisy, data, allow=["dropout"])
    with pytest.raises(ValueError, match="two passes over one batch"):
        HessianOperator(sure(), noisy, data)


REFUSED = {
    "class weights": lambda o, t: cross_entropy(o, t, weight=torch.tensor([1.0, 2.0, 4.0])),
    "a sum": lambda o, t: cross_entropy(o, t, reduction="sum"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 60])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("allow", [(), ("batchnorm",), ("dropout",)])
def test_refused_where_the_data_are_sorted_by_class(name, chunk_size, scale, allow):
    with pytest.raises(ValueError, match="not the mean over its examples"):
        HessianOperator(
            sure(scale), REFUSED[name], sorted_by_class(), chunk_size=chunk_size, allow=allow
        )


@pytest.mark.parametrize("chunk_size", [7, 60])  # two examples may have one loss, and its root
def test_a_function_of_the_mean_is_refused(chunk_size):
    def root(outputs, targets):
        return cross_entropy(outputs, targets).sqrt()

    with pytest.raises(ValueError, match="not the mean over its examples"):
        HessianOperator(sure(), root, sorted_by_class(), chunk_size=chunk_size)


def test_refused_where_the_loss_compares_the_examples_of_a_batch():
    def contrast(outputs, targets):
        likeness = outputs @ outputs.T
        return cross_entropy(likeness, torch.arange(len(outputs)))

    for allow in ((), ("batchnorm",)):
        with pytest.raises(ValueError, match="not the mean over its examples"):
            HessianOperator(sure(), contrast, sorted_by_class(), allow=allow)


@pytest.mark.parametrize(
    "left_out", [slice(0, 12), slice(11, 23), slice(0, 23, 2), [3], [0], [22], slice(0, 22)]
)
@pytest.mark.parametrize("chunk_size", [1, 4, 128])
def test_labels_left_out_anywhere(left_out, chunk_size):
    x, y = normal(23, 4), torch.randint(3, (23,), generator=torch.Generator().manual_seed(1))
    y[left_out] = -100
    with pytest.raises(ValueError, match="If labels below 0 are left out, take reduction='sum'"):
        HessianOperator(linear(), cross_entropy, (x, y), chunk_size=chunk_size)


def weighted(classes, seed, rare=False):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (1024,), generator=generator)
    if rare:
        y = (torch.rand(1024, generator=generator) < 0.005).long()
    weight = torch.arange(1.0, classes + 1)
    return (
        linear(8, classes, seed),
        lambda o, t: cross_entropy(o, t, weight=weight),
        (normal(1024, 8, seed=seed), y),
    )


def padded(seed, flat=False):
    """Sentences of different lengths, so that every example has labels that are left out."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(11, (256, 12), generator=generator)
    for row in y:
        row[6 + int(torch.randint(6, (1,), generator=generator)) :] = -100
    table = nn.Embedding.from_pretrained(normal(11, 4, seed=seed), freeze=False)
    model = nn.Sequential(table, linear(4, 11, seed))
    if flat:
        return (
            nn.Sequential(*model, nn.Flatten(0, 1)),
            lambda o, t: cross_entropy(o, t.flatten()),
            (y.relu(), y),
        )
    return model, lambda o, t: cross_entropy(o.flatten(0, 1), t.flatten()), (y.relu(), y)


def segmented(seed):
    y = torch.randint(3, (64, 4, 4), generator=torch.Generator().manual_seed(seed))
    y[::2, :1] = 255
    return nn.Conv2d(2, 3, 1), nn.CrossEntropyLoss(ignore_index=255), (normal(64, 2, 4, 4), y)


def close(seed):
    """The sum of squares of outputs in a tuple that are nearly the targets."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear(4, 1, seed)

        def forward(self, x):
            return self.inner(x), x

    model, x = Pair(), normal(200, 4)
    y = model(x)[0].detach() + 1e-4 * normal(200, 1, seed=seed)
    return model, lambda o, t: mse_loss(o[0], t, reduction="sum"), (x, y)


def constant(seed):
    model = linear(8, 1, seed)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model, mse_loss, (normal(200, 8), normal(200, seed=seed))  # (n, 1) against (n,)


SUBTLE = {
    "weights of shuffled classes": lambda seed: weighted(5, seed),
    "weights of two classes": lambda seed: weighted(2, seed),
    "the weight of a rare class": lambda seed: weighted(2, seed, rare=True),
    "padded sentences": padded,
    "padded sentences, in a row": lambda seed: padded(seed, flat=True),
    "pixels left out": segmented,
    "a sum near zero in a tuple": close,
    "constant outputs of another shape than the targets": constant,
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", SUBTLE)
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 16, 128, 2048])
@pytest.mark.parametrize("seed", range(2))
def test_no_chance_lets_a_fault_pass(name, chunk_size, seed):
    model, loss_fn, data = SUBTLE[name](seed)
    with pytest.raises(ValueError, match="not the mean over its examples"):
        HessianOperator(model, loss_fn, data, chunk_size=chunk_size)


def test_faults_that_cancel_over_all_parts_do_not_over_two():
    extra = {2: 1.0, 4: -0.5}  # of parts of 2 and 4 examples; 2 + 4 * (-0.5) = 0

    def cancelling(outputs, targets):
        return mse_loss(outputs, targets) + extra.get(len(targets), 0.0)

    with pytest.raises(ValueError, match="not the mean over its examples"):
        HessianOperator(linear(), cancelling, (normal(32, 4), normal(32, 3, seed=1)))


def test_an_infinite_loss_of_a_part_hides_no_fault():
    def infinite_without_a_one(outputs, targets):
        return (outputs**2).mean() / targets.max()

    targets = torch.ones(32)
    targets[:2] = 0  # the first part; the mean over every other is right
    with pytest.raises(ValueError, match="not the mean over its examples"):
        HessianOperator(linear(), infinite_without_a_one, (normal(32, 4), targets))


@pytest.mark.parametrize("seed", range(12))
def test_rows_of_tokens_are_tried_in_small_groups(seed):
    model, loss_fn, data = padded(seed, flat=True)
    with pytest.raises(ValueError, match="not the mean over its examples"):
        HessianOperator(model, loss_fn, data)


@pytest.mark.parametrize("batch", [1, 2, 5, 50, 200])
@pytest.mark.parametrize("chunk_size", [1, 3, 128])
def test_no_pass_is_larger_than_those_to_come(batch, chunk_size):
    seen = []
    model = linear()
    model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    x, y = normal(200, 4), torch.arange(200) % 3
    HessianOperator(
        model,
        cross_entropy,
        zip(x.split(batch), y.split(batch), strict=True),
        chunk_size=chunk_size,
    )
    assert max(seen) <= max(2, min(batch, chunk_size))


def test_small_batches_are_not_cut_to_single_examples():
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear(4, 1)

        def forward(self, x):
            return self.inner(x).squeeze()

    for size in (4, 6, 7):
        HessianOperator(Squeezed(), mse_loss, (normal(size, 4), normal(size, seed=1)))


def test_buffers_that_a_pass_replaces_are_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()
            self.register_buffer("passes", torch.tensor(0))

        def forward(self, x):
            self.passes = self.passes + 1
            return self.inner(x)

    model = Counting()
    before = model.passes
    H = HessianOperator(model, cross_entropy, (normal(9, 4), torch.arange(9) % 3))
    _ = H @ torch.ones(H.shape[0])
    assert model.passes is before
    assert before == 0


def test_batches_of_different_lengths_are_not_mixed():
    batches = [(normal(6, 4), normal(6, 4)), (normal(6, 9), normal(6, 9))]
    model = nn.Conv1d(1, 1, 3, padding=1)

    def loss(outputs, targets):
        return mse_loss(outputs[:, 0], targets)

    both = nn.Sequential(nn.Unflatten(1, (1, -1)), model)
    H = HessianOperator(both, loss, batches)
    one = [HessianOperator(both, loss, batch) for batch in batches]
    torch.testing.assert_close(H @ torch.ones(4), sum(h @ torch.ones(4) for h in one) / 2)

    labels = [torch.arange(6) % 3, torch.arange(6) % 3 - 1]

    def classes(outputs, targets):
        return cross_entropy(outputs[:, 0, :3], targets, ignore_index=-1)

    with pytest.raises(ValueError, match="If labels below 0 are left out"):
        HessianOperator(both, classes, [(x, y) for (x, _), y in zip(batches, labels, strict=True)])


class TestWords:
    """One line says what failed, and how."""

    @pytest.mark.parametrize(
        ("loss_fn", "words"),
        [
            (
                lambda o, t: o["scores"],
                "the loss fails on a batch of 32: KeyError: 'scores' .*logi",
            ),
            (lambda o, t: cross_entropy(o, t), r"returns a dict: .* loss\(outputs\['logits'\]"),
            (lambda o, t: (o["logits"].argmax(1) == t).sum(), "a floating-point number, got torch"),
            (lambda o, t: 1.0, "must return a scalar"),
        ],
    )
    def test_a_loss_that_fails(self, loss_fn, words):
        with pytest.raises(ValueError, match=words):
            HessianOperator(Named(sure()), loss_fn, sorted_by_class())

    def test_the_loss_fails_on_later_examples_only(self):
        x, y = sorted_by_class()
        y[-1] = 7
        with pytest.raises(ValueError, match=r"the loss fails on a batch of 5: .*Target 7"):
            HessianOperator(sure(), cross_entropy, (x, y), chunk_size=5)

    def test_outputs_that_are_no_tensor(self):
        class Array(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = sure()

            def forward(self, x):
                return self.inner(x).numpy()

        with pytest.raises(ValueError, match=r"the model returns a ndarray: let loss_fn choose"):
            HessianOperator(Array(), cross_entropy, sorted_by_class())

    def test_a_model_that_differentiates(self):
        class Force(nn.Module):
            def __init__(self, allowed):
                super().__init__()
                self.inner, self.allowed = linear(3, 1), allowed

            def forward(self, x):
                with torch.set_grad_enabled(torch.is_grad_enabled() or self.allowed):
                    x = x.detach().requires_grad_()
                    energy = self.inner(x).pow(2).sum()
                    return torch.autograd.grad(energy, x, create_graph=True)[0]

        data = (normal(20, 3), normal(20, 3, seed=1))
        with pytest.raises(ValueError, match=r"needs torch\.enable_grad\(\) inside forward"):
            HessianOperator(Force(allowed=False), mse_loss, data)
        H = HessianOperator(Force(allowed=True), mse_loss, data)
        assert torch.isfinite(H @ torch.ones(4)).all()

    def test_outputs_that_depend_on_the_batch(self):
        class Centred(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = linear(3)

            def forward(self, x):
                return self.inner(x - x.mean(dim=0))

        with pytest.raises(ValueError, match="depend on the others of its batch"):
            HessianOperator(Centred(), cross_entropy, sorted_by_class())

    def test_memory_that_runs_out_keeps_its_name(self):
        def hungry(outputs, targets):
            raise torch.OutOfMemoryError("no memory left")

        with pytest.raises(torch.OutOfMemoryError):
            HessianOperator(sure(), hungry, sorted_by_class())

    def test_a_network_without_parameters(self):
        with pytest.raises(ValueError, match=r"no parameters .*the order is model, loss_fn, data"):
            HessianOperator(nn.CrossEntropyLoss(), sure(), sorted_by_class())


def test_rounding_beside_a_mask_is_no_dependence():
    """Processors may round a row of a batch otherwise than alone, also where a mask is -inf."""
    whole = torch.tensor([[1.0, -torch.inf, 2.0], [0.5, -torch.inf, -1.0], [0.1, -torch.inf, 0.3]])
    eps = torch.finfo(torch.float32).eps
    assert _alike(whole[:2] * (1 + eps), whole, slice(0, 2), eps)
    assert not _alike(whole[:2] * 1.5, whole, slice(0, 2), eps)
    assert not _alike(whole[:2].nan_to_num(neginf=0.0), whole, slice(0, 2), eps)
