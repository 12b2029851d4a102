"""SANEModel: invariances and their negations, initialisation, files, gradients, whole sequences."""

import copy
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_sane.models.configuration_sane import SANEConfig
from hf_sane.models.layers_sane import SANEPositionEmbedding, SANESinusoidalEmbedding
from hf_sane.models.losses_sane import masked_reconstruction_loss, nt_xent_loss
from hf_sane.models.modeling_sane import SANEModel
from hf_sane.models.outputs_sane import SANEOutput

TINY = {
    "token_dim": 12,
    "hidden_size": 24,
    "latent_dim": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_positions": (40, 6, 9),
    "window_size": 10,
}


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return SANEModel(SANEConfig(**TINY | changes)).eval()


def trained_looking(seed=0, **changes):
    """A model whose branches do something, whatever its initialisation."""
    model = tiny(seed, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(size=3, window=10, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    config = SANEConfig(**TINY | changes)
    positions = torch.stack([torch.randint(n, (size, window), generator=generator) for n in TINY["max_positions"]], -1)
    return torch.randn(size, window, config.token_dim, generator=generator), positions


@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
@pytest.mark.parametrize("window", [1, 7, 10])
def test_shapes(position_embedding, window):
    model = tiny(position_embedding=position_embedding)
    tokens, positions = batch(window=window)
    output = model(tokens, positions, second_tokens=tokens)
    assert isinstance(output, SANEOutput)
    for latents in (output.latents, output.second_latents):
        assert latents.shape == (3, window, 8)
    for reconstruction in (output.reconstruction, output.second_reconstruction):
        assert reconstruction.shape == (3, window, 12)
    assert output.projection.shape == (3, 30)
    assert output.loss.ndim == 0
    assert model(tokens, positions, return_loss=False).loss is None


def test_forward_is_encode_then_decode():
    model, (tokens, positions) = trained_looking(), batch()
    output = model(tokens, positions)
    latents = model.encode(tokens, positions)
    assert torch.equal(output.latents, latents)
    assert torch.equal(output.reconstruction, model.decode(latents, positions))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
@pytest.mark.parametrize("real", [1, 4, 9])
def test_padded_tokens_do_not_influence_real_ones(attention, position_embedding, real):
    model = trained_looking(position_embedding=position_embedding)
    model.set_attn_implementation(attention)
    tokens, positions = batch()
    attention_mask = torch.ones(3, 10, dtype=torch.int64)
    attention_mask[1, real:] = 0
    polluted, elsewhere = tokens.clone(), positions.clone()
    polluted[1, real:] = 1e4
    elsewhere[1, real:] = 0
    clean = model(tokens, positions, attention_mask=attention_mask)
    dirty = model(polluted, elsewhere, attention_mask=attention_mask, target_tokens=tokens)
    alone = model(tokens[1:2, :real], positions[1:2, :real])
    for name in ("latents", "reconstruction"):
        assert torch.allclose(getattr(clean, name), getattr(dirty, name), atol=1e-5)
        assert torch.allclose(getattr(clean, name)[1, :real], getattr(alone, name)[0], atol=1e-5)
        assert (getattr(clean, name)[1, real:] == 0).all()
    assert torch.allclose(clean.projection, dirty.projection, atol=1e-5)
    assert torch.allclose(clean.projection[1], alone.projection[0], atol=1e-4)
    assert torch.allclose(clean.loss, dirty.loss, rtol=1e-5)
    assert not torch.allclose(model(polluted, positions).latents[1, :real], clean.latents[1, :real], atol=1e-3)


def test_windows_do_not_see_each_other_and_tokens_do():
    model, (tokens, positions) = trained_looking(), batch()
    before = model.encode(tokens, positions)
    changed = tokens.clone()
    changed[1, 5] += 1
    after = model.encode(changed, positions)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] != after[1]).any(dim=-1).all()


def test_order_matters_only_through_positions():
    model, (tokens, positions) = trained_looking(), batch()
    order = torch.randperm(10)
    shuffled = model.encode(tokens[:, order], positions[:, order])
    assert torch.allclose(shuffled, model.encode(tokens, positions)[:, order], atol=1e-5)
    assert not torch.allclose(model.encode(tokens[:, order], positions), shuffled, atol=1e-3)


def test_eager_and_sdpa_agree_and_record_what_is_asked_for():
    model, (tokens, positions) = trained_looking(), batch()
    mask = torch.ones(3, 10)
    mask[0, 6:] = 0
    fast = model(tokens, positions, attention_mask=mask, output_hidden_states=True)
    model.set_attn_implementation("eager")
    slow = model(tokens, positions, attention_mask=mask, output_attentions=True)
    assert torch.allclose(fast.reconstruction, slow.reconstruction, atol=1e-5)
    assert [state.shape for state in fast.hidden_states] == [(3, 10, 24)] * 3
    assert [weights.shape for weights in slow.attentions] == [(3, 4, 10, 10)] * 2
    assert torch.allclose(slow.attentions[0].sum(-1), torch.ones(3, 4, 10), atol=1e-5)
    assert (slow.attentions[0][0, :, :, 6:] == 0).all()
    assert isinstance(model(tokens, positions, return_dict=False), tuple)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("target", ["clean", "noisy"])
def test_the_loss_is_made_of_its_parts(views, target):
    model = trained_looking(reconstruction_target=target, contrast_weight=0.3, temperature=0.5)
    tokens, positions = batch()
    clean, second, second_clean = batch(seed=1)[0], batch(seed=2)[0], batch(seed=3)[0]
    weight_mask = torch.rand(tokens.shape) < 0.5
    given = {"second_tokens": second, "second_target_tokens": second_clean} if views == 2 else {}
    output = model(tokens, positions, weight_mask=weight_mask, target_tokens=clean, **given)
    targets = [clean, second_clean] if target == "clean" else [tokens, second]
    decoded = [output.reconstruction, output.second_reconstruction]
    parts = [masked_reconstruction_loss(decoded[i], targets[i], weight_mask) for i in range(views)]
    assert torch.allclose(output.reconstruction_loss, torch.stack(parts).mean(), rtol=1e-5)
    if views == 1:
        assert output.contrastive_loss is None
        assert output.loss == output.reconstruction_loss
    else:
        projections = [model.projection_head(latents) for latents in (output.latents, output.second_latents)]
        contrast = nt_xent_loss(*projections, temperature=0.5)
        assert torch.allclose(output.contrastive_loss, contrast, rtol=1e-4)
        assert torch.allclose(output.loss, 0.7 * output.reconstruction_loss + 0.3 * contrast, rtol=1e-4)


@pytest.mark.parametrize("options", [{"reconstruction_denominator": "all"}, {"loss_normalization": "masked"}])
def test_loss_options_reach_the_loss(options):
    (tokens, positions), weight_mask = batch(), torch.rand(3, 10, 12) < 0.5
    plain, changed = trained_looking(), trained_looking(**options)
    losses = [model(tokens * 3, positions, weight_mask=weight_mask).loss for model in (plain, changed)]
    assert not torch.allclose(*losses)


def test_projections_end_as_configured():
    tokens, positions = batch(size=8)
    assert (trained_looking()(tokens, positions).projection < 0).any()
    assert (trained_looking(projection_output="relu")(tokens, positions).projection >= 0).all()


def test_short_windows_are_projected_as_if_padded_with_zeros():
    model, (tokens, positions) = trained_looking(), batch(window=6)
    latents = model.encode(tokens, positions)
    padded = torch.cat([latents, torch.zeros(3, 4, 8)], dim=1)
    assert torch.equal(model(tokens, positions).projection, model.projection_head(padded))


def test_long_windows_are_refused_by_the_contrastive_loss_only():
    model, (tokens, positions) = tiny(), batch(window=11)
    assert model(tokens, positions).projection is None
    with pytest.raises(ValueError, match="windows of at most window_size=10 tokens, got 11; cut shorter windows"):
        model(tokens, positions, second_tokens=tokens)
    assert tiny(contrast_weight=0)(tokens, positions, second_tokens=tokens).loss.isfinite()


@pytest.mark.parametrize("initialization", ["linear_path", "paper"])
@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
def test_every_parameter_learns(initialization, position_embedding):
    model = tiny(initialization=initialization, position_embedding=position_embedding).train()
    tokens, positions = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # behind branches that start at zero, gradients arrive with the second step
        optimizer.zero_grad()
        model(tokens, positions, second_tokens=tokens + 0.1 * torch.randn_like(tokens)).loss.backward()
        optimizer.step()
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert not silent


def test_both_views_contribute_to_the_reconstruction():
    model, (tokens, positions) = tiny(contrast_weight=0), batch()
    one = model(tokens, positions, second_tokens=tokens).loss
    other = model(tokens, positions, second_tokens=tokens, second_target_tokens=tokens + 1).loss
    assert other > one + 0.4


@pytest.mark.parametrize("sizes", [(12, 24, 12), (12, 24, 16), (12, 12, 12), (12, 24, 24), (24, 24, 24), (12, 24, 30)])
@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
def test_linear_path_reconstructs_before_training(sizes, position_embedding):
    token_dim, hidden_size, latent_dim = sizes
    changes = {"token_dim": token_dim, "hidden_size": hidden_size, "latent_dim": latent_dim}
    model = tiny(position_embedding=position_embedding, initialization="linear_path", **changes)
    tokens, positions = batch(**changes)
    assert model(tokens, positions).loss < 0.01  # the position embeddings are all that is left
    for module in (model.encoder_positions, model.decoder_positions):
        for parameter in module.parameters():
            parameter.data.zero_()
    assert torch.allclose(model(tokens, positions).reconstruction, tokens, atol=1e-5)
    paper = tiny(position_embedding=position_embedding, initialization="paper", **changes)
    assert paper(tokens, positions).loss > 0.8


@pytest.mark.parametrize("sizes", [(12, 24, 5), (12, 6, 30), (30, 12, 20), (30, 24, 8)])
def test_a_narrow_linear_path_is_the_orthogonal_projection_on_the_first_coordinates(sizes):
    token_dim, hidden_size, latent_dim = sizes
    model = tiny(token_dim=token_dim, hidden_size=hidden_size, latent_dim=latent_dim, num_attention_heads=2)
    maps = [model.token_in, model.latent_out, model.latent_in, model.token_out]
    path = torch.eye(token_dim)
    for layer in maps:
        path = layer.weight @ path
        assert (layer.bias == 0).all()
    kept = torch.zeros(token_dim)
    kept[: min(sizes)] = 1
    assert torch.allclose(path, torch.diag(kept), atol=1e-5)
    assert torch.equal(model.token_in.weight, model.token_out.weight.T)
    assert torch.equal(model.latent_in.weight, model.latent_out.weight.T)


def test_paper_initialisation_has_the_published_spread():
    model = tiny(initialization="paper", hidden_size=240, latent_dim=200, num_hidden_layers=3)
    scaled = 0.02 / (2 * 3) ** 0.5
    for layer in [*model.encoder, *model.decoder]:
        for weight in (layer.attention.q_proj.weight, layer.fc_in.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        for weight in (layer.attention.o_proj.weight, layer.fc_out.weight):
            assert weight.std().item() == pytest.approx(scaled, rel=0.05)
    for weight in (model.token_in.weight, model.latent_out.weight, model.token_out.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


def low_rank_tokens(rank, seed=0, count=200, token_dim=12):
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(size, generator=generator) for size in ((count, rank), (rank, token_dim))]
    return factors[0] @ factors[1] + torch.randn(token_dim, generator=generator)


@pytest.mark.parametrize("initialization", ["linear_path", "paper"])
@pytest.mark.parametrize("hidden_size", [8, 12, 24])
def test_initialize_from_tokens_finds_the_subspace_of_the_tokens(initialization, hidden_size):
    model = tiny(initialization=initialization, hidden_size=hidden_size, latent_dim=8)
    tokens = low_rank_tokens(rank=8)
    real = torch.ones_like(tokens, dtype=torch.bool)
    assert model.initialize_from_tokens(tokens, real) == pytest.approx(1.0, abs=1e-6)
    path = tokens
    for layer in (model.token_in, model.latent_out, model.latent_in, model.token_out):
        path = layer(path)
    assert torch.allclose(path, tokens, atol=1e-4)


def test_initialize_from_tokens_is_the_best_linear_code():
    model = tiny(latent_dim=4)
    tokens, real = low_rank_tokens(rank=9), torch.rand(200, 12) < 0.8
    r2 = model.initialize_from_tokens(tokens, real)
    sample = tokens * real
    path = sample
    for layer in (model.token_in, model.latent_out, model.latent_in, model.token_out):
        path = layer(path)
    centred = (sample - sample.mean(0)).double()
    singular_values = torch.linalg.svdvals(centred)
    assert ((path - sample) ** 2).sum().item() == pytest.approx(singular_values[4:].square().sum().item(), rel=1e-4)
    error, spread = (path - sample)[real].square().sum(), (sample[real] - sample[real].mean()).square().sum()
    assert r2 == pytest.approx(1 - (error / spread).item(), abs=1e-5)
    assert 0 < r2 < 1


def test_initialize_from_tokens_refuses_what_it_cannot_use():
    model = tiny()
    with pytest.raises(ValueError, match=r"expected tokens and weight_mask \[n, 12\], got \(5, 11\)"):
        model.initialize_from_tokens(torch.zeros(5, 11), torch.ones(5, 11, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected real weights among 5 tokens, got only padding"):
        model.initialize_from_tokens(torch.zeros(5, 12), torch.zeros(5, 12, dtype=torch.bool))


def test_latent_noise_is_relative_and_in_training_only():
    tokens, positions = batch(size=64)
    model = tiny(latent_noise=0.5)
    quiet = model(tokens, positions).reconstruction
    assert torch.equal(quiet, model(tokens, positions).reconstruction)
    model.train()
    torch.manual_seed(0)
    noisy = model(tokens, positions)
    assert torch.allclose(noisy.latents, model(tokens, positions).latents)
    added = (noisy.reconstruction - quiet)[..., :8]  # the linear path hands the noise through
    scale = noisy.latents.square().mean((0, 1)).sqrt()
    assert torch.allclose(added.std((0, 1)), 0.5 * scale, rtol=0.15)
    torch.manual_seed(0)
    larger = model(tokens * 10, positions)
    assert larger.loss.item() == pytest.approx(100 * noisy.loss.item(), rel=0.2)


def test_latent_noise_ignores_padding():
    tokens, positions = batch(size=64)
    mask = torch.ones(64, 10)
    mask[:, 1:] = 0
    model = tiny(latent_noise=0.5).train()
    output = model(tokens, positions, attention_mask=mask)
    added = (output.reconstruction - model.decode(output.latents, positions, mask))[:, 0, :8]
    scale = output.latents[:, 0].square().mean(0).sqrt()
    assert torch.allclose(added.std(0), 0.5 * scale, rtol=0.4)


def test_positions_beyond_the_learned_tables_raise():
    model, (tokens, positions) = tiny(), batch()
    for column, size in enumerate(TINY["max_positions"]):
        outside = positions.clone()
        outside[2, 3, column] = size
        with pytest.raises(
            ValueError, match=rf"learned tables of \(40, 6, 9\) rows, got values from .*{size}.*sinusoidal"
        ):
            model.encode(tokens, outside)
        with pytest.raises(ValueError, match="learned tables"):
            model.decode(torch.zeros(3, 10, 8), outside)
    positions[0, 0, 0] = -1
    with pytest.raises(ValueError, match=r"got values from \(-1"):
        model(tokens, positions)


def test_positions_are_also_checked_without_reading_them_back(monkeypatch):
    """The path of accelerators and compiled graphs: queued, without the offending values."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    embedding, (_, positions) = SANEPositionEmbedding(SANEConfig(**TINY)), batch()
    embedding.check(positions)
    with pytest.raises(RuntimeError, match=r"positions outside the learned tables of \(40, 6, 9\) rows.*sinusoidal"):
        embedding.check(positions + 40)


def test_sinusoidal_positions_have_no_limit():
    model, (tokens, positions) = trained_looking(position_embedding="sinusoidal"), batch()
    far = model.encode(tokens, positions + 10_000_000)
    assert far.isfinite().all()
    assert not torch.allclose(far, model.encode(tokens, positions), atol=1e-3)


def test_learned_positions_against_the_equation():
    config = SANEConfig(**TINY)
    torch.manual_seed(0)
    embedding, (_, positions) = SANEPositionEmbedding(config), batch()
    embedded = embedding(positions)
    n, layer, k = positions[1, 4]
    first = embedding.token_table.weight[n] + embedding.layer_table.weight[layer]
    assert torch.equal(embedded[1, 4], torch.cat([first, embedding.channel_table.weight[k]]))


def test_sinusoidal_positions_tell_token_and_layer_apart():
    config = SANEConfig(**TINY | {"position_embedding": "sinusoidal", "initialization": "paper"})
    embedding = SANEModel(config).encoder_positions
    assert isinstance(embedding, SANESinusoidalEmbedding)
    swapped = embedding(torch.tensor([[[3, 5, 0], [5, 3, 0]]]))
    assert (swapped[0, 0] - swapped[0, 1]).abs().max() > 0.1
    assert torch.allclose(swapped.square().sum(-1), torch.tensor(12.0))


def test_shapes_that_do_not_fit_raise():
    model, (tokens, positions) = tiny(), batch()
    with pytest.raises(ValueError, match=r"expected tokens \[B, W, token_dim\] with last axis 12.*another token_dim"):
        model.encode(tokens[..., :11], positions)
    with pytest.raises(ValueError, match=r"expected latents \[B, W, latent_dim\] with last axis 8"):
        model.decode(tokens, positions)
    with pytest.raises(ValueError, match=r"and positions \[B, W, 3\]"):
        model.encode(tokens, positions[:, :9])
    with pytest.raises(TypeError, match=r"has no argument \['second_token'\]"):
        model(tokens, positions, second_token=tokens)


@pytest.mark.parametrize("length", [1, 7, 10, 11, 15, 23, 40])
@pytest.mark.parametrize("halo_size", [0, 3])
def test_sequences_do_not_depend_on_the_batch_size(length, halo_size):
    model = trained_looking()
    tokens, positions = torch.randn(3, length, 12), batch(1, length)[1][0]
    outputs = []
    for batch_size in (1, 2, 64):
        latents = model.encode_sequences(tokens, positions, halo_size=halo_size, batch_size=batch_size)
        decoded = model.decode_sequences(latents, positions, halo_size=halo_size, batch_size=batch_size)
        assert latents.shape == (3, length, 8)
        assert decoded.shape == tokens.shape
        outputs.append((latents, decoded))
    for latents, decoded in outputs[1:]:
        assert torch.allclose(latents, outputs[0][0], atol=1e-5)
        assert torch.allclose(decoded, outputs[0][1], atol=1e-5)


def test_short_sequences_take_one_pass_and_long_ones_see_their_windows():
    model = trained_looking().train()
    tokens, positions = torch.randn(2, 10, 12), batch(2)[1][:, :10]
    with torch.no_grad():
        whole = model.eval().encode(tokens, positions)
    model.train()
    assert torch.allclose(model.encode_sequences(tokens, positions), whole, atol=1e-6)
    assert model.training
    halves = model.encode_sequences(tokens, positions, window_size=5)
    assert torch.allclose(halves[:, :5], model.encode_sequences(tokens[:, :5], positions[:, :5]), atol=1e-6)
    assert not torch.allclose(halves, whole, atol=1e-3)


def test_sequences_restore_the_mode_after_an_error():
    model = tiny().train()
    with pytest.raises(ValueError, match="learned tables"):
        model.encode_sequences(torch.zeros(1, 2, 12), torch.full((2, 3), 99))
    assert model.training


@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
@pytest.mark.parametrize("initialization", ["linear_path", "paper"])
def test_save_and_load_round_trip(tmp_path, position_embedding, initialization):
    model = trained_looking(position_embedding=position_embedding, initialization=initialization)
    model.save_pretrained(tmp_path)
    loaded, info = SANEModel.from_pretrained(tmp_path, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[kind], kind
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    tokens, positions = batch()
    torch.testing.assert_close(loaded(tokens, positions).reconstruction, model(tokens, positions).reconstruction)


def test_sharded_files_and_copies_are_equal_too(tmp_path):
    model, (tokens, positions) = trained_looking(), batch()
    expected = model(tokens, positions).reconstruction
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for same in (SANEModel.from_pretrained(tmp_path), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(same(tokens, positions).reconstruction, expected)


@pytest.mark.parametrize("missing", ["encoder.0.fc_out.weight", "token_out.weight", "encoder_positions.gain"])
def test_missing_keys_are_reported_and_initialised(tmp_path, missing):
    model = trained_looking(position_embedding="sinusoidal")
    state = {name: value for name, value in model.state_dict().items() if name != missing}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = SANEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert list(info["missing_keys"]) == [missing]
    fresh = tiny(position_embedding="sinusoidal").state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, fresh[name] if name == missing else model.state_dict()[name]), name


def test_bfloat16_loads_and_runs_close_to_float32(tmp_path):
    model, (tokens, positions) = trained_looking(), batch()
    model.save_pretrained(tmp_path)
    half = SANEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = half(tokens, positions, second_tokens=tokens)
    assert output.reconstruction.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert torch.allclose(output.reconstruction.float(), model(tokens, positions).reconstruction, atol=0.3)
    assert half.encode_sequences(tokens, positions).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode_sequences(tokens, positions)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, model.encode_sequences(tokens, positions), atol=0.1)


def test_activation_checkpointing_gives_the_same_gradients():
    model, (tokens, positions) = trained_looking().train(), batch()
    gradients = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(tokens, positions, second_tokens=tokens * 1.1).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert gradients[0]
    assert all(torch.allclose(first, second, atol=1e-6) for first, second in zip(*gradients, strict=True))


def test_same_seed_same_model():
    first, second, other = (tiny(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_auto_classes_find_it(tmp_path):
    AutoConfig.register("sane", SANEConfig, exist_ok=True)
    AutoModel.register(SANEConfig, SANEModel, exist_ok=True)
    tiny().save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SANEModel)


def test_dummy_inputs_run():
    model = tiny()
    assert model(**model.dummy_inputs).loss.isfinite()
