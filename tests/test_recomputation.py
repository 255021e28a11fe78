"""Recomputed modules: the same products as plain ones, from fewer kept numbers."""

import pytest
import torch
from test_operators import random_vector
from torch import nn
from torch.nn.functional import cross_entropy

import losslandscape as ll
from losslandscape.operators import _saved_bytes
from losslandscape.recomputation import recomputed

EXAMPLES, TOKENS, WIDTH, CLASSES = 6, 5, 8, 3


class Block(nn.Module):
    """Attention and layers that share weights, with an option by name and noise in train mode."""

    def __init__(self, shared):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.inner, self.again = shared, shared
        self.tied = nn.Linear(WIDTH, WIDTH)
        self.tied.weight = shared.weight
        self.drop = nn.Dropout(0.2)

    def forward(self, x, scale=None, *, shift=0.0):
        mixed, _ = self.attention(x, x, x, need_weights=False)
        x = x + self.drop(mixed) * scale
        return x + self.again(self.inner(self.tied(x)).tanh()) + shift


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block(shared) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.dead = nn.Linear(2, 2)  # takes no part

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            x = block(x, self.scale, shift=number * self.scale.square())
        return self.head(x.mean(dim=1))


def problem(train=False):
    torch.manual_seed(0)
    model = Transformer().double().train(train)
    x = random_vector(EXAMPLES * TOKENS, columns=WIDTH).reshape(EXAMPLES, TOKENS, WIDTH)
    return model, (x, torch.arange(EXAMPLES) % CLASSES)


@pytest.mark.parametrize("kind", [ll.HessianOperator, ll.GaussNewtonOperator])
@pytest.mark.parametrize("kept", [0, 1 << 30], ids=["graphs dropped", "graphs kept"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("options", [{}, {"allow": ["dropout"]}], ids=["eval", "dropout"])
def test_products_are_those_of_the_plain_network(kind, kept, nested, options):
    model, data = problem(train="allow" in options)
    modules = [*model.blocks, *([model.blocks[0].inner] if nested else [])]
    options = {"chunk_size": 4, "memory_budget": kept, **options}
    plain = kind(model, cross_entropy, data, **options)
    light = kind(model, cross_entropy, data, recompute=modules, **options)
    v = random_vector(plain.shape[0], columns=2)
    expected = plain @ v
    for _ in range(2):  # a kept graph serves again
        torch.testing.assert_close(light @ v, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(light.curved_start(), plain.curved_start(), rtol=1e-12, atol=1e-14)


def test_frozen_weights_and_inputs_without_gradient():
    model, data = problem()
    for p in model.blocks[0].parameters():
        p.requires_grad_(False)
    model.scale.requires_grad_(False)  # then nothing bends in the first block
    plain = ll.HessianOperator(model, cross_entropy, data)
    light = ll.HessianOperator(model, cross_entropy, data, recompute=model.blocks)
    v = random_vector(plain.shape[0])
    torch.testing.assert_close(light @ v, plain @ v, rtol=1e-12, atol=1e-14)


def test_weights_that_change_are_seen():
    model, data = problem()
    light = ll.HessianOperator(model, cross_entropy, data, recompute=model.blocks)
    v = random_vector(light.shape[0])
    before = light @ v
    model.blocks[1].inner.weight.data *= 1.1
    after = light @ v
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, ll.HessianOperator(model, cross_entropy, data) @ v)


def test_less_is_kept():
    """Of six blocks of eight layers each, the inputs and the slopes of six blocks."""
    torch.manual_seed(0)
    block = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(8)]
    model = nn.Sequential(*(nn.Sequential(*block) for _ in range(6))).double()
    x = random_vector(512, columns=4)

    def kept(modules):
        params = list(model.parameters())
        with _saved_bytes({x, *params}) as saved, recomputed(modules):
            loss = model(x).square().mean()
            slopes = torch.autograd.grad(loss, params, create_graph=True)
        return saved["bytes"], slopes

    (all_of_it, _), (inputs, _) = kept([]), kept(model)
    assert inputs <= (2 * 6 + 1) * x.nbytes  # and the outputs, for the loss
    assert inputs < all_of_it / 8


def test_the_model_and_the_random_state_are_left_alone():
    model, data = problem(train=True)
    model.blocks[2].forward = own = model.blocks[2].forward
    before = torch.get_rng_state()
    H = ll.HessianOperator(model, cross_entropy, data, recompute=model.blocks, allow=["dropout"])
    H @ random_vector(H.shape[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert "forward" not in vars(model.blocks[0])
    assert model.blocks[2].forward is own
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


def test_hooks_run_once_for_each_pass():
    model, data = problem()
    calls, inside = [], []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    model.blocks[0].attention.register_forward_hook(lambda *_: inside.append(1))
    with recomputed([*model.blocks, model.blocks[0]]):  # naming one twice changes nothing
        loss = cross_entropy(model(data[0]), data[1])
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert len(calls) == 1
    assert len(inside) == 2  # what is inside, once more for the gradient


def test_an_error_inside_leaves_the_model_as_it_was():
    model, _ = problem()
    with pytest.raises(RuntimeError), recomputed(model.blocks):
        model(torch.ones(2, TOKENS, WIDTH + 1, dtype=torch.float64))
    assert "forward" not in vars(model.blocks[0])


class TestRefusals:
    def test_not_of_this_model(self):
        model, data = problem()
        with pytest.raises(ValueError, match="recompute holds what is not a module of this model"):
            ll.HessianOperator(model, cross_entropy, data, recompute=[nn.Linear(2, 2)])

    def test_several_outputs(self):
        model, data = problem()
        attention = [block.attention for block in model.blocks]
        H = ll.HessianOperator(model, cross_entropy, data, recompute=attention)
        with pytest.raises(ValueError, match="MultiheadAttention returns tuple: name the modules"):
            H @ random_vector(H.shape[0])


def test_lambda_max_takes_it():
    model, data = problem()
    plain = ll.lambda_max(model, cross_entropy, data, tol=1e-8)
    light = ll.lambda_max(model, cross_entropy, data, tol=1e-8, recompute=model.blocks)
    torch.testing.assert_close(light.values, plain.values, rtol=1e-12, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model, (x, y) = problem(train=True)
    model, data = model.cuda(), (x.cuda(), y.cuda())
    options = {"allow": ["dropout"], "memory_budget": 0}
    plain = ll.HessianOperator(model, cross_entropy, data, **options)
    light = ll.HessianOperator(model, cross_entropy, data, recompute=model.blocks, **options)
    v = random_vector(plain.shape[0]).cuda()
    torch.testing.assert_close(light @ v, plain @ v, rtol=1e-10, atol=1e-12)
