"""CLIP through open_clip: agreement with the published formulas, windows, text embeddings and their cache,
fingerprints, memory, and what a user is told on failure."""

import json
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from locrl.vision import clip
from locrl.vision.clip import (
    BACKGROUND,
    OpenClipEncoder,
    WeightsError,
    dense_unsupported,
    encode_texts,
    forms,
    joint_tokens,
    last_block,
    phrases,
    resize_position_embedding,
    rivals,
    sliding_dense,
)
from locrl.data.voc import VOC_CLASSES
from locrl.vision.encoders import ensure_torchvision, load_encoder
from locrl.vision.saliency import METHODS

ensure_torchvision()
open_clip = pytest.importorskip("open_clip")

TINY = dict(
    embed_dim=24,
    vision_cfg=dict(image_size=64, layers=3, width=64, head_width=16, patch_size=8),
    text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2),
)


@pytest.fixture(scope="session", autouse=True)
def tiny(tmp_path_factory):
    "Registers three small models: a plain one, one with layer scale and without ln_pre, one as OpenAI's archives are"
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-ViT-8.json").write_text(json.dumps(TINY))
    (folder / "tiny-ViT-8-quickgelu.json").write_text(json.dumps(TINY | dict(quick_gelu=True)))
    (folder / "tiny-scaled.json").write_text(
        json.dumps(TINY | dict(vision_cfg=TINY["vision_cfg"] | dict(ls_init_value=0.5, no_ln_pre=True)))
    )
    openai = dict(
        embed_dim=64,
        quick_gelu=True,
        vision_cfg=dict(image_size=32, layers=2, width=128, patch_size=8),
        text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=2),
    )
    (folder / "tiny-openai.json").write_text(json.dumps(openai))
    open_clip.add_model_config(folder)


def random_encoder(name="tiny-ViT-8", **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return OpenClipEncoder(name, **(dict(pretrained=None, precision="fp32") | kwargs))


def lively(name, seed=0):
    "A model with random weights whose attention is far from uniform and whose biases are not zero"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(name).eval().requires_grad_(False)
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(3)
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.ln_1.bias, block.ln_2.bias):
                bias.normal_(std=0.1)
        return model


def pixels_for(model, n=2, seed=0):
    size = model.visual.image_size[0]
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def entering_last_block(visual, pixels):
    "Tokens that enter the last block, caught on their way through open_clip's own forward"
    caught = []
    hook = visual.transformer.resblocks[-1].register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    visual(pixels)
    hook.remove()
    return caught[0]


def formula(visual, pixels, method):
    "The published last block in NumPy and float64, one head at a time"

    def array(t):
        return t.detach().double().numpy()

    block = visual.transformer.resblocks[-1]
    d, width = block.attn.head_dim, block.attn.embed_dim

    def norm(m, a):
        centred = a - a.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + m.eps) * array(m.weight) + array(m.bias)

    def softmax(a):
        e = np.exp(a - a.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def gamma(m):
        return array(m.gamma) if hasattr(m, "gamma") else 1.0

    x = array(entering_last_block(visual, pixels))
    qkv = norm(block.ln_1, x) @ array(block.attn.in_proj_weight).T + array(block.attn.in_proj_bias)
    heads = []
    for h in range(block.attn.num_heads):
        q, k, v = (qkv[..., i * width + h * d : i * width + (h + 1) * d] for i in range(3))

        def weights(a, b):
            return softmax(a @ b.transpose(0, 2, 1) / np.sqrt(d))

        heads.append(
            {
                "vanilla": lambda: weights(q, k) @ v,
                "sclip": lambda: (weights(q, q) + weights(k, k)) @ v,
                "clearclip": lambda: weights(q, q) @ v,
                "maskclip": lambda: v,
            }[method]()
        )
    out = (np.concatenate(heads, -1) @ array(block.attn.out_proj.weight).T + array(block.attn.out_proj.bias)) * gamma(
        block.ls_1
    )
    if method != "clearclip":
        out = x + out
        hidden = norm(block.ln_2, out) @ array(block.mlp.c_fc.weight).T + array(block.mlp.c_fc.bias)
        out = out + array(block.mlp.c_proj(block.mlp.gelu(torch.tensor(hidden).float()))) * gamma(block.ls_2)
    return norm(visual.ln_post, out) @ array(visual.proj)


def check_formulas(name):
    model = lively(name)
    pixels = pixels_for(model)
    outputs = {}
    for method in METHODS:
        outputs[method] = joint_tokens(model.visual, pixels, method)
        expected = formula(model.visual, pixels, method)
        difference = np.abs(outputs[method].numpy() - expected).max() / max(1, np.abs(expected).max())
        assert difference < 1e-5, (name, method, difference)
    torch.testing.assert_close(outputs["vanilla"][:, 0], model.encode_image(pixels), atol=1e-5, rtol=1e-5)
    for a in METHODS:
        for b in METHODS:
            assert a == b or (outputs[a] - outputs[b]).abs().max() > 0.01, (a, b)


@pytest.mark.parametrize("name", ["tiny-ViT-8", "tiny-ViT-8-quickgelu", "tiny-scaled"])
def test_formulas_small(name):
    check_formulas(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-32", "ViT-L-14"])
def test_formulas_real_shapes(name):
    check_formulas(name)


def test_vanilla_equals_the_blocks_own_forward():
    model = lively("tiny-scaled")
    x = torch.randn(2, 10, 64)
    block = model.visual.transformer.resblocks[-1]
    torch.testing.assert_close(last_block(block, x, "vanilla"), block(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="nope"):
        last_block(block, x, "nope")


@pytest.mark.parametrize("size", [32, 64, 96, 136])
def test_other_sizes_as_open_clip_resizes_them(size, tmp_path):
    model = lively("tiny-ViT-8")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    other = (
        open_clip.create_model("tiny-ViT-8", pretrained=str(tmp_path / "w.pt"), force_image_size=size)
        .eval()
        .requires_grad_(False)
    )
    pixels = torch.randn(2, 3, size, size)
    torch.testing.assert_close(
        joint_tokens(model.visual, pixels, "vanilla")[:, 0], other.encode_image(pixels), atol=1e-5, rtol=1e-5
    )


def test_position_embedding_native_is_untouched():
    e = torch.randn(1 + 49, 8)
    assert resize_position_embedding(e, (7, 7), (7, 7)) is e
    assert resize_position_embedding(e.half(), (7, 7), (9, 5)).shape == (46, 8)


def test_vit_l14_is_768_dimensional():
    config = open_clip.get_model_config("ViT-L-14")
    assert config["embed_dim"] == 768 and dense_unsupported(config) is None


@pytest.mark.parametrize(
    "name,why",
    [
        ("RN50", "ResNet"),
        ("convnext_base", "timm"),
        ("PE-Core-B-16", "timm"),
        ("coca_ViT-B-32", "attention"),
        ("ViT-L-14-CLIPA", "avg"),
    ],
)
def test_unsupported_models_are_refused_with_the_reason(name, why):
    with pytest.raises(ValueError, match=f"{name}.*{why}"):
        OpenClipEncoder(name, pretrained=None)


def test_encoder_on_pictures():
    encoder = random_encoder(input_size=96)
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 255, (50, 80, 3), dtype=np.uint8)),
        Image.new("L", (31, 200), 90),
        Image.new("RGBA", (1, 1)),
    ]
    dense = encoder.encode(images)
    assert (
        dense.shape == (3, 24, *encoder.grid) == (3, 24, 12, 12)
        and dense.dtype == torch.float32
        and not dense.requires_grad
    )
    torch.testing.assert_close(dense.norm(dim=1), torch.ones(3, 12, 12))
    torch.testing.assert_close(random_encoder(input_size=96, batch_size=1).encode(images), dense, atol=1e-5, rtol=1e-4)
    tokens = F.normalize(joint_tokens(encoder.model.visual, encoder.preprocess(images), "sclip")[:, 1:], dim=-1)
    torch.testing.assert_close(dense[:, :, 2, 5], tokens[:, 2 * 12 + 5], atol=1e-6, rtol=1e-5)  # row by row


def test_crops_are_the_models_own_output():
    encoder = random_encoder(input_size=128)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    box = [0.25, 0.5, 0.75, 1.0]
    from open_clip.transform import PreprocessCfg, image_transform_v2

    native = image_transform_v2(PreprocessCfg(size=64, resize_mode="squash"), is_train=False)
    expected = encoder.model.encode_image(native(image.crop((20, 30, 60, 60)))[None], normalize=True)
    torch.testing.assert_close(encoder.embed_crops([image], [box]), expected, atol=1e-4, rtol=1e-4)
    assert (encoder.embed_crops([image], [box], context=8) - expected).abs().max() > 1e-4
    assert encoder.embed_crops([image] * 5, [box] * 5, context=8).shape == (5, 24)


def test_class_embeddings_are_the_zero_shot_classifier():
    encoder = random_encoder()
    tokenizer, names = open_clip.get_tokenizer("tiny-ViT-8"), ["horse", "cow", "bus"]
    expected = open_clip.build_zero_shot_classifier(
        encoder.model, tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES
    ).T
    torch.testing.assert_close(encoder.class_embeddings(names), expected, atol=1e-5, rtol=1e-4)
    single = random_encoder(prompts="single").class_embeddings(["motorbike", "horse"])
    expected = encoder.model.encode_text(tokenizer(["a photo of a motorcycle.", "a photo of a horse."]), normalize=True)
    torch.testing.assert_close(single, expected, atol=1e-5, rtol=1e-4)
    for bad in ("", "  ", None):
        with pytest.raises(ValueError, match="class name"):
            encoder.class_embeddings([bad])


def test_texts_without_padding():
    model = lively("tiny-ViT-8")
    texts = open_clip.get_tokenizer("tiny-ViT-8")(
        ["a", "a photo of a very long story about a dog " * 20, "a photo of a cat."]
    )
    torch.testing.assert_close(encode_texts(model, texts), model.encode_text(texts), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encode_texts(model, texts[::2]), model.encode_text(texts[::2]), atol=1e-5, rtol=1e-5)


def test_evidence_and_presence():
    encoder = random_encoder()
    dense = F.normalize(torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    names = ["horse", "sofa", "a red kite"]
    evidence = encoder.evidence(dense, names)
    bank = [b for b in encoder.bank if b != "horse"]
    scale = encoder.model.logit_scale.exp()
    logits = torch.einsum("bdhw,cd->bchw", dense, encoder.class_embeddings(["horse", *bank])) * scale
    torch.testing.assert_close(evidence[:, 0], logits.softmax(1)[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.evidence(dense, ["sofa"]), evidence[:, 1:2])
    presence = encoder.presence(dense, names)
    assert presence.shape == (2, 3) and ((presence >= 0) & (presence <= 1)).all()


def test_a_cell_that_is_the_class_is_hot_and_one_of_the_background_is_cold():
    encoder = random_encoder(scale=1e5)  # the texts of random weights lie close together
    texts = encoder.class_embeddings(["horse", "sky"])
    evidence = encoder.evidence(texts.T[None, :, None, :], ["horse"])[0, 0, 0]
    assert evidence[0] > 0.9 and evidence[1] < 0.1


def windows_in_pixels(maps, size, window, stride, patch):
    "mmsegmentation's slide_inference as SCLIP uses it: each window's map is enlarged, added, and divided by its count"
    steps = max(size - window + stride - 1, 0) // stride + 1
    total = 0
    count = torch.zeros(size, size)
    for row in range(steps):
        for col in range(steps):
            y2, x2 = min(row * stride + window, size), min(col * stride + window, size)
            y1, x1 = max(y2 - window, 0), max(x2 - window, 0)
            large = maps(y1, x1).repeat_interleave(patch, -1).repeat_interleave(patch, -2)
            total = total + F.pad(large, (x1, size - x2, y1, size - y2))
            count[y1:y2, x1:x2] += 1
    assert (count > 0).all()
    return (total / count)[..., ::patch, ::patch]


def test_a_stride_wants_a_window():
    with pytest.raises(ValueError, match="window too"):
        random_encoder(stride=16)


@pytest.mark.parametrize(
    "phrase, no_rivals",
    [
        ("women", {"person"}),
        ("the black dogs", {"dog"}),
        ("buses", {"bus"}),
        ("a television", {"tvmonitor"}),
        ("airplanes", {"aeroplane"}),
        ("a zebra", set()),
    ],
)
def test_rivals_know_the_plural(phrase, no_rivals):
    assert {b for b, is_rival in zip(VOC_CLASSES, rivals(phrase, VOC_CLASSES)) if not is_rival} == no_rivals


def test_people_are_persons():
    assert {"person"} <= set(forms("people")) & set(forms("men")) & set(forms("children"))


@pytest.mark.parametrize(
    "size,window,stride", [(64, 64, 32), (96, 64, 32), (96, 64, 16), (120, 64, 48), (128, 40, 40), (72, 64, 64)]
)
def test_windows_are_sclips(size, window, stride):
    model, pixels = lively("tiny-ViT-8"), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))

    def cells(x):
        return (
            F.normalize(joint_tokens(model.visual, x, "sclip")[:, 1:], dim=-1)
            .transpose(1, 2)
            .unflatten(2, (window // 8, window // 8))
        )

    expected = windows_in_pixels(
        lambda y, x: cells(pixels[..., y : y + window, x : x + window]), size, window, stride, 8
    )
    got = sliding_dense(cells, pixels, window, stride, 8)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    encoder = random_encoder(input_size=size, window=window, stride=stride, batch_size=3)
    encoder.model = model
    torch.testing.assert_close(encoder.dense(pixels), expected, atol=1e-5, rtol=1e-5)
    texts = F.normalize(
        torch.randn(4, 24), dim=1
    )  # the cosines of the mean are the mean of the cosines: SCLIP averages those
    logits = windows_in_pixels(
        lambda y, x: torch.einsum("bdhw,cd->bchw", cells(pixels[..., y : y + window, x : x + window]), texts),
        size,
        window,
        stride,
        8,
    )
    torch.testing.assert_close(torch.einsum("bdhw,cd->bchw", got, texts), logits, atol=1e-5, rtol=1e-5)


def test_windows_make_another_encoder():
    whole = random_encoder(input_size=96)
    one = random_encoder(input_size=96, window=96)
    halves = random_encoder(input_size=96, window=64)
    assert halves.stride == 32 and halves.grid == (12, 12) and halves.crop_size == 64
    pixels = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(whole.dense(pixels), one.dense(pixels))
    assert (halves.dense(pixels) - whole.dense(pixels)).abs().max() > 1e-3
    assert len({e.fingerprint for e in (whole, one, halves)}) == 3


# -- texts that are kept on disk --


@pytest.fixture
def texts(tmp_path, monkeypatch):
    "An empty cache, and a list that grows with every call of the text tower"
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path))
    calls, real = [], encode_texts
    monkeypatch.setattr(clip, "encode_texts", lambda *args: calls.append(len(args[1])) or real(*args))
    return tmp_path / "texts", calls


def test_texts_are_encoded_once(texts):
    folder, calls = texts
    names = ["horse", "tvmonitor"]
    made = random_encoder().class_embeddings(names)
    assert calls == [80, 160] and len(list(folder.iterdir())) == 2
    assert (
        torch.equal(random_encoder(method="clearclip", input_size=96).class_embeddings(names), made) and len(calls) == 2
    )  # the same text tower
    assert (
        torch.equal(random_encoder(precision="bf16" if clip._bf16_cpu() else "fp32").class_embeddings(names), made)
        and len(calls) == 2
    )
    for other in (dict(seed=1), dict(prompts="single"), dict(name="tiny-ViT-8-quickgelu")):
        before = len(calls)
        assert not torch.equal(random_encoder(**other).class_embeddings(names), made) and len(calls) == before + 2, (
            other
        )


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b[:150] + bytes([b[150] ^ 1]) + b[151:],
        lambda b: b"no archive",
    ],
)
def test_a_damaged_text_is_noticed_and_made_anew(texts, damage):
    folder, calls = texts
    made = random_encoder().class_embeddings(["horse"])
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        again = random_encoder().class_embeddings(["horse"])
    assert torch.equal(again, made) and len(calls) == 2
    assert torch.equal(random_encoder().class_embeddings(["horse"]), made) and len(calls) == 2


def test_a_text_of_another_size_is_no_text(texts):
    made = random_encoder().class_embeddings(["horse"])
    (file,) = texts[0].iterdir()
    for wrong in (made[0, :5].numpy(), np.full(24, np.nan, np.float32), np.zeros(24, np.float32)):
        np.savez(file, embedding=wrong)
        with pytest.warns(UserWarning, match="is damaged.*unit vector"):
            assert torch.equal(random_encoder().class_embeddings(["horse"]), made)


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the folder cannot even be read
        assert random_encoder().class_embeddings(["horse"]).shape == (1, 24)


def test_the_batch_halves_where_memory_runs_out(monkeypatch):
    encoder = random_encoder(batch_size=8)
    real = clip.joint_tokens
    sizes = []
    pixels = torch.randn(11, 3, 64, 64)
    expected = encoder.dense(pixels)

    def cramped(visual, x, method):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(visual, x, method)

    monkeypatch.setattr(clip, "joint_tokens", cramped)
    torch.testing.assert_close(encoder.dense(pixels), expected)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1] and encoder.batch_size == 2
    assert random_encoder().batch_size == 8


def test_phrases_and_rivals():
    assert phrases("TVmonitor") == phrases("tv_monitor") == ("tv monitor", "television")
    assert phrases("the dining table") == ("dining table",) and phrases("a") == ("a",)
    assert rivals("person", ("person", "cat")) == [False, True]
    assert rivals("a man in a boat", ("person", "boat", "bottle")) == [False, False, True]
    assert sum(rivals("unicorn", BACKGROUND)) == len(BACKGROUND)


def test_random_weights_say_so():
    with pytest.warns(UserWarning, match="RANDOM weights"):
        encoder = load_encoder("tiny-ViT-8", pretrained=None)
    assert "random" in encoder.name and "random" in repr(encoder)


def test_fingerprint_follows_weights_and_settings():
    base = random_encoder()
    assert random_encoder().fingerprint == base.fingerprint and len(base.fingerprint) == 64
    assert random_encoder(batch_size=3).fingerprint == base.fingerprint
    others = [
        random_encoder(**k).fingerprint
        for k in (
            dict(seed=1),
            dict(method="maskclip"),
            dict(input_size=72),
            dict(prompts="single"),
            dict(bank=("sky",)),
            dict(scale=40.0),
            dict(name="tiny-ViT-8-quickgelu"),
        )
    ]
    changed = random_encoder()
    changed.model.ln_final.bias[3] += 1e-3
    assert len({base.fingerprint, changed.fingerprint, *others}) == 9


@pytest.mark.parametrize(
    "kwargs,says",
    [
        (dict(method="dino"), "dino.*sclip"),
        (dict(input_size=100), "input_size=100.*patch size 8.*96"),
        (dict(window=36, input_size=96), "window=36.*patch size 8.*32"),
        (dict(window=96), "window=96.*stride <= window <= input_size=64"),
        (dict(window=32, stride=40), "stride=40"),
        (dict(window=32, stride=12), "stride=12.*patch size 8"),
        (dict(prompts="many"), "many.*ensemble"),
        (dict(precision="fp16"), "GPU"),
        (dict(precision="fp8"), "fp8"),
    ],
)
def test_impossible_settings(kwargs, says):
    with pytest.raises(ValueError, match=says):
        random_encoder(**kwargs)


def test_bf16_is_refused_where_the_cpu_has_none(monkeypatch):
    for has in (False, True):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
        if has:
            assert random_encoder(precision="bf16")._dtype is torch.bfloat16
        else:
            with pytest.raises(ValueError, match="bf16.*fp32"):
                random_encoder(precision="bf16")


@pytest.mark.parametrize("native", [False, True])
def test_precision_is_what_the_device_has(monkeypatch, native):
    monkeypatch.setattr(clip, "_bf16_cpu", lambda: native)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert (
        clip.autocast_dtype("auto", "cpu") == (torch.bfloat16 if native else None)
        and clip.autocast_dtype("auto", "cuda") == torch.float16
    )
    assert isinstance(clip._bf16_cpu(), bool)


def test_bf16_agrees_with_fp32():
    half = random_encoder()
    half._dtype = torch.bfloat16  # emulated where the CPU has none
    check_half(half, random_encoder())


def check_half(half, full):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    a, b = half.dense(x).cpu(), full.dense(x)
    assert a.dtype == torch.float32 and half.fingerprint == full.fingerprint
    assert F.cosine_similarity(a, b, dim=1).min() > 0.99
    names = ["horse", "sofa"]
    torch.testing.assert_close(half.class_embeddings(names).cpu(), full.class_embeddings(names), atol=0.03, rtol=0.1)
    torch.testing.assert_close(half.evidence(half.dense(x), names).cpu(), full.evidence(b, names), atol=0.02, rtol=0.3)


@pytest.mark.gpu
def test_half_precision_on_gpu():
    check_half(random_encoder(device="cuda"), random_encoder())


# -- weights that cannot be had --


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="ViT-L-41.*ViT-L-14.*efficientnet_lite0"):
        load_encoder("ViT-L-41")


def test_neither_tag_nor_file():
    with pytest.raises(WeightsError, match="nowhere.pt.*openai.*efficientnet_lite0"):
        OpenClipEncoder("ViT-B-32", pretrained="nowhere.pt")
    with pytest.raises(WeightsError, match="has no tags"):
        OpenClipEncoder("tiny-ViT-8", pretrained="openai")


def test_no_network_says_what_to_fetch(no_network):
    with pytest.raises(WeightsError) as e:
        OpenClipEncoder("ViT-B-32", pretrained="openai")
    for part in (
        "hf download timm/vit_base_patch32_clip_224.openai",
        "'ViT-B-32-quickgelu', pretrained='/path/to/file'",
        "efficientnet_lite0",
    ):
        assert part in str(e.value)
    with pytest.raises(WeightsError, match="hf download laion/some-model.*local-dir:.*efficientnet_lite0"):
        OpenClipEncoder("hf-hub:laion/some-model")
    from huggingface_hub import constants

    assert not constants.HF_HUB_OFFLINE


def test_openai_tag_switches_quick_gelu_on(monkeypatch):
    asked, create = {}, open_clip.create_model

    def spy(name, **options):
        asked.update(options, name=name)
        return create("tiny-ViT-8")

    monkeypatch.setattr(open_clip, "create_model", spy)
    OpenClipEncoder("ViT-L/14", pretrained="openai")
    assert asked == dict(name="ViT-L-14", pretrained="openai", require_pretrained=True, force_quick_gelu=True)
    asked.clear()
    OpenClipEncoder("ViT-B-16", pretrained="laion2b_s34b_b88k")
    assert "force_quick_gelu" not in asked


def test_checkpoints_on_disk(tmp_path):
    from safetensors.torch import save_file

    encoder = random_encoder()
    state = encoder.model.state_dict()
    torch.save(dict(state_dict={f"module.{k}": v for k, v in state.items()}, epoch=3), tmp_path / "trained.pt")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=TINY)))
    for name, pretrained in [
        ("tiny-ViT-8", str(tmp_path / "trained.pt")),
        ("tiny-ViT-8", tmp_path / "open_clip_model.safetensors"),
    ]:
        loaded = OpenClipEncoder(name, pretrained=pretrained)
        assert loaded.fingerprint == encoder.fingerprint and "random" not in loaded.name
    folder = OpenClipEncoder(f"local-dir:{tmp_path}")
    for k, v in folder.model.state_dict().items():
        assert torch.equal(v, state[k])
    assert folder.class_embeddings(["cat"]).shape == (1, 24)


def test_damaged_or_foreign_checkpoints(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(random_encoder().model.state_dict(), path)
    with pytest.raises(WeightsError, match="tiny-openai.*w.pt"):
        OpenClipEncoder("tiny-openai", pretrained=str(path))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(WeightsError, match="tiny-ViT-8.*w.pt"):
        OpenClipEncoder("tiny-ViT-8", pretrained=str(path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=TINY)))
    path.unlink()
    with pytest.raises(WeightsError, match="local-dir"):
        OpenClipEncoder(f"local-dir:{tmp_path}")


def test_torchscript_archive_as_openai_published(tmp_path):
    model = lively("tiny-openai")
    mask = model._buffers.pop("attn_mask")
    model.attn_mask = mask  # no buffer, as in OpenAI's archives
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = torch.jit.trace(
            model, (torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)), check_trace=False
        )
        archive.save(str(tmp_path / "ViT.pt"))
    encoder = OpenClipEncoder("tiny-openai", pretrained=str(tmp_path / "ViT.pt"), precision="fp32")
    pixels = pixels_for(model)
    torch.testing.assert_close(
        encoder.embed_images(pixels), model.encode_image(pixels, normalize=True), atol=2e-3, rtol=5e-2
    )  # stored as float16
    assert "QuickGELU" in repr(encoder.model.visual)
    with pytest.raises(WeightsError, match="does not fit tiny-ViT-8"):
        OpenClipEncoder("tiny-ViT-8", pretrained=str(tmp_path / "ViT.pt"))


# -- the whole path --


@pytest.mark.parametrize("evidence", ["encoder", "prototypes"])
def test_a_run_from_pictures_to_scores(tmp_path, monkeypatch, evidence):
    "A tiny CLIP with random weights: features are cached, an agent learns, is evaluated, and comes back from disk"
    from locrl.experiments.config import Config, prepare
    from locrl.evaluation.protocols import evaluate
    from locrl.experiments.train import Agent, train

    monkeypatch.setenv("LOCRL_CACHE", str(tmp_path))
    config = Config().replace(
        {
            "name": "clip",
            "encoder.name": "tiny-ViT-8",
            "encoder.pretrained": None,
            "encoder.input_size": 64,
            "encoder.dim": None,
            "encoder.evidence": evidence,
            "encoder.prompts": "single",
            "data.train": "simple-scenes:train:24",
            "data.select": "simple-scenes:val:6",
            "data.report": "simple-scenes:test:6",
            "data.flip": True,
            "learning.n_envs": 4,
            "learning.batch_size": 16,
            "learning.gradient_steps": 1,
            "network.net_arch": (16,),
            "network.region_width": 4,
            "learning.steps": 320,
            "evaluation.eval_every": 160,
            "learning.learning_starts": 64,
            "replay.buffer_size": 400,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world = prepare(config)
        folder = train(config, world=world, progress=False)
        agent = Agent.load(folder)
        bank = world.bank("select")
        assert (bank.dim, tuple(bank.saliency.shape)) == (24, (6, 5, 16, 16)) and "random" in repr(world.encoder)
        result = evaluate(agent.policy, bank, world.data["select"])
        again = evaluate(
            agent.policy, agent.world().bank("select"), world.data["select"]
        )  # made anew from the run's folder
    assert np.array_equal(result.predictions.box, again.predictions.box) and 0 <= result.detection.map11 <= 1


def test_prompts_are_data():
    "The file holds what was in the code, every entry with its source; the templates are CLIP's own"
    prompts = clip.PROMPTS
    assert [t.format("dog") for t in clip.TEMPLATES] == [t("dog") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert all(len(entry["source"]) > 20 for name, entry in prompts.items() if name != "about")
    assert clip.SYNONYMS["person"] == ("person", "man", "woman", "child")
    assert len(BACKGROUND) == len(set(BACKGROUND)) == 24
    assert all(template.count("{}") == 1 for template in (*clip.TEMPLATES, clip.SINGLE_PROMPT))


SIGLIP = dict(
    embed_dim=48,
    init_logit_bias=-10,
    custom_text=True,
    vision_cfg=dict(image_size=64, timm_model_name="tiny_siglip", timm_pool="map", timm_proj="none"),
    text_cfg=TINY["text_cfg"] | dict(no_causal_mask=True, proj_bias=True, pool_type="last"),
)


@pytest.fixture(scope="module")
def siglip(tiny, tmp_path_factory):
    "A small model built as SigLIP is, from an image tower of timm; its pool looks at some patches more than at others"
    timm = pytest.importorskip("timm")

    def tiny_siglip(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs):
        shape = dict(img_size=64, patch_size=8, embed_dim=48, depth=2, num_heads=3, class_token=False)
        return timm.models.vision_transformer.VisionTransformer(**shape, **kwargs)

    timm.models.register_model(tiny_siglip)
    folder = tmp_path_factory.mktemp("siglip")
    (folder / "tiny-pooled.json").write_text(json.dumps(SIGLIP))
    open_clip.add_model_config(folder)
    encoder = random_encoder("tiny-pooled", method="maskclip")
    with torch.no_grad():
        encoder.model.visual.trunk.attn_pool.latent.mul_(30)
        for bias in (encoder.model.visual.trunk.attn_pool.kv.bias, encoder.model.visual.trunk.attn_pool.proj.bias):
            bias.normal_(std=0.1)
    return encoder


def untouched(encoder, size=64):
    "The image tower as open_clip makes it, with the weights of an encoder, for one size"
    visual = open_clip.create_model("tiny-pooled").visual.eval()
    visual.load_state_dict(encoder.model.visual.state_dict())
    if size != 64:
        visual.trunk.set_input_size((size, size))
    return visual


@pytest.mark.parametrize("size", [64, 96])
def test_a_patch_of_siglip_takes_the_way_of_the_values(siglip, size):
    "In NumPy and float64; for another size the reference is a tower that timm made for it"
    encoder = siglip
    if size != 64:
        encoder = random_encoder("tiny-pooled", method="maskclip", input_size=size)
    trunk = untouched(encoder, size).trunk
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = trunk.forward_features(pixels).double().numpy()
    pool = trunk.attn_pool

    def linear(layer, x, rows=slice(None)):
        return x @ layer.weight.detach().double().numpy()[rows].T + layer.bias.detach().double().numpy()[rows]

    value = linear(pool.kv, x, slice(48, 96))
    projected = linear(pool.proj, value)
    centred = projected - projected.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + pool.norm.eps)
    hidden = torch.tensor(linear(pool.mlp.fc1, normed))
    out = projected + linear(pool.mlp.fc2, F.gelu(hidden).numpy())
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    side = size // 8
    dense = encoder.dense(pixels)
    assert dense.shape == (2, 48, side, side) and encoder.grid == (side, side)
    np.testing.assert_allclose(dense.flatten(2).transpose(1, 2).numpy(), out, atol=1e-5)


def test_siglip_keeps_its_own_embeddings(siglip):
    "Whole pictures and texts are what open_clip makes of them; the pool is no mean"
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    own = F.normalize(untouched(siglip)(pixels), dim=1).detach()
    torch.testing.assert_close(siglip.embed_images(pixels), own, atol=1e-5, rtol=1e-5)
    assert (F.normalize(siglip.dense(pixels).mean((2, 3)), dim=1) - own).abs().max() > 1e-3
    sentences = siglip.texts.sentences("horse")
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("tiny-pooled")(sentences)
        text = F.normalize(F.normalize(siglip.model.encode_text(tokens), dim=1).mean(0), dim=0)
    torch.testing.assert_close(siglip.class_embeddings(["horse"])[0], text, atol=1e-5, rtol=1e-5)
    images = [Image.new("RGB", (90, 60), colour) for colour in ("red", "blue")]
    dense = siglip.encode(images)
    assert siglip.evidence(dense, ["horse", "dog"]).shape == (2, 2, 8, 8)
    assert siglip.presence(dense, ["horse"]).shape == (2, 1)
    assert siglip.embed_crops(images, [[0, 0, 1, 1], [0.1, 0.1, 0.5, 0.9]], context=16).shape == (2, 48)


@pytest.mark.parametrize(
    "raised, error, words",
    [
        (ModuleNotFoundError("No module named 'transformers'"), ImportError, "pip install transformers sentencepiece"),
        (OSError("timm/ViT-B-16-SigLIP is not a local folder"), WeightsError, "no tokenizer for tiny-pooled: timm/ViT"),
    ],
)
def test_a_tokenizer_that_cannot_be_had(siglip, monkeypatch, raised, error, words):
    "SigLIP's is a package and a download of its own"

    def refuse(name):
        raise raised

    monkeypatch.setattr(open_clip, "get_tokenizer", refuse)
    with pytest.raises(error, match=words):
        random_encoder("tiny-pooled", method="maskclip").class_embeddings(["a thing never asked for"])


def test_siglip_has_one_method(siglip):
    "It is asked for by name; windows and fingerprints are as for CLIP"
    with pytest.raises(ValueError, match="method='sclip' is not defined.*method='maskclip'"):
        OpenClipEncoder("tiny-pooled", pretrained=None)
    windows = random_encoder("tiny-pooled", method="maskclip", input_size=128, window=64)
    assert windows.encode([Image.new("RGB", (9, 9))]).shape == (1, 48, 16, 16)
    plain = [random_encoder("tiny-pooled", method="maskclip", seed=seed).fingerprint for seed in (0, 0, 1)]
    assert plain[0] == plain[1] and len({*plain, windows.fingerprint}) == 3
    assert dense_unsupported(open_clip.get_model_config("ViT-SO400M-14-SigLIP2-378")) is None
