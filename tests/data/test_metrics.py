import math

import numpy as np
import pytest
import torch
import torchmetrics.functional.image as tm

from ka import metrics
from ka.errors import KAError, Undefined
from ka.metrics import METRICS, measure

NAMES = list(METRICS)


def pair(*shape, noise=0.05, dtype=torch.float64, seed=0):
    """A target in [0.1, 0.9] with bands of unlike brightness, and a noisy prediction that leaves [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    target = 0.1 + 0.8 * torch.rand(shape, generator=rng, dtype=torch.float64)
    target *= torch.linspace(0.3, 1, shape[1], dtype=torch.float64)[:, None, None]
    prediction = target + noise * torch.randn(shape, generator=rng, dtype=torch.float64)
    return prediction.to(dtype), target.to(dtype)


def image(*bands):
    """A float64 image of shape (1, bands, rows, columns) from nested lists."""
    return torch.tensor(bands, dtype=torch.float64)[None]


def call(name, prediction, target):
    return METRICS[name].function(prediction, target, ratio=4)


def close(value, expected, rel=1e-12, abs=1e-12):
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value.detach().numpy(), np.asarray(expected), rtol=rel, atol=abs)


class TestAgainstTorchmetrics:
    """An independent implementation, where it means the same thing."""

    shape = (2, 5, 24, 19)

    def test_psnr_of_each_band(self):
        p, t = pair(*self.shape)
        bands = [[tm.peak_signal_noise_ratio(p[i, j], t[i, j], data_range=1.0) for j in range(5)] for i in range(2)]
        close(metrics.psnr(p, t), np.mean(bands, axis=1), rel=1e-6)  # torchmetrics has float32 in its log

    def test_psnr_published_is_the_psnr_of_an_image(self):
        p, t = pair(*self.shape)
        each = [tm.peak_signal_noise_ratio(p[i], t[i], data_range=float(t[i].max())) for i in range(2)]
        close(metrics.psnr_published(p, t), each, rel=1e-6)

    def test_sam_in_degrees(self):
        p, t = pair(*self.shape)
        angle = tm.spectral_angle_mapper(p, t, reduction="none")
        close(metrics.sam(p, t), torch.rad2deg(angle).mean((1, 2)))

    @pytest.mark.parametrize("ratio", [4, 8])
    def test_ergas_divides_by_the_ratio(self, ratio):
        p, t = pair(*self.shape)
        expected = tm.error_relative_global_dimensionless_synthesis(p, t, ratio=ratio, reduction="none")
        close(metrics.ergas(p, t, ratio), expected)

    @pytest.mark.parametrize("peak", [1.0, 0.7])
    @pytest.mark.parametrize("size", [(11, 11), (11, 40), (24, 19), (11, metrics.DENSE + 1), (metrics.DENSE + 9, 30)])
    def test_ssim(self, size, peak):
        p, t = pair(2, 5, *size)
        expected, full = tm.structural_similarity_index_measure(
            p, t, data_range=peak, reduction="none", return_full_image=True
        )
        close(metrics.ssim(p, t, peak), expected, rel=1e-7)
        close(metrics.ssim_map(p, t, peak), full, rel=1e-6)


class TestByHand:
    def test_psnr_is_the_mean_over_bands_and_published_is_not(self):
        target = image([[1.0, 0.5]], [[0.5, 0.25]])
        prediction = target + torch.tensor([0.1, 0.01])[None, :, None, None]
        close(metrics.psnr(prediction, target), [30.0], rel=1e-7)
        close(metrics.psnr(prediction, target, peak=10.0), [50.0], rel=1e-7)
        mse = (0.1**2 + 0.01**2) / 2
        close(metrics.psnr_published(prediction, target), [-10 * math.log10(mse)], rel=1e-7)
        close(metrics.psnr_published(prediction / 2, target / 2), metrics.psnr_published(prediction, target), rel=1e-7)

    def test_sam(self):
        prediction = image([[1.0, 0.0, -2.0]], [[1.0, 3.0, 0.0]])
        target = image([[5.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]])
        close(metrics.sam(prediction, target), [(45 + 90 + 180) / 3])

    def test_ergas_is_relative_to_the_target(self):
        target = image([[1.0, 3.0]], [[4.0, 4.0]])
        prediction = image([[2.0, 2.0]], [[4.0, 8.0]])
        close(metrics.ergas(prediction, target, 4), [25 * math.sqrt((1 / 4 + 8 / 16) / 2)])

    def test_rmse(self):
        close(metrics.rmse(image([[1.0, 2.0]], [[3.0, 4.0]]), image([[1.0, 2.0]], [[3.0, 0.0]])), [2.0])

    def test_cc_leaves_constant_bands_out(self):
        # 0.1 and 0.2 are no binary fractions: these bands minus their mean are not zero, and correlate
        constant, another = [[0.1, 0.1, 0.1]], [[0.2, 0.2, 0.2]]
        prediction = image([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]], constant, [[1.0, 2.0, 3.0]], constant)
        target = image([[1.0, 2.0, 3.0]], [[1.0, 3.0, 2.0]], [[1.0, 3.0, 2.0]], constant, another)
        close(metrics.cc(prediction, target), [(1 + 0.5) / 2])

    def test_cc_ignores_gain_and_offset_and_keeps_the_sign(self):
        _, target = pair(1, 3, 9, 9)
        close(metrics.cc(5 - 2 * target, target), [-1.0])

    def test_ssim_of_constant_images_is_the_luminance_term(self):
        a, b, c1 = 0.2, 0.6, 0.01**2
        flat = torch.ones(1, 2, 12, 12, dtype=torch.float64)
        close(metrics.ssim(a * flat, b * flat), [(2 * a * b + c1) / (a * a + b * b + c1)])

    def test_ssim_of_windows_inside_the_image(self):
        """The published definition, one window at a time: the crop that the docstring names."""
        p, t = pair(1, 2, 14, 13)
        weight = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
        weight = np.outer(weight, weight) / weight.sum() ** 2
        values = []
        for x, y in zip(p[0].numpy(), t[0].numpy(), strict=True):
            for i in range(4):
                for j in range(3):
                    u, v = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                    mu, mv = (weight * u).sum(), (weight * v).sum()
                    vu, vv = (weight * (u - mu) ** 2).sum(), (weight * (v - mv) ** 2).sum()
                    cov = (weight * (u - mu) * (v - mv)).sum()
                    luminance = (2 * mu * mv + 1e-4) / (mu**2 + mv**2 + 1e-4)
                    values.append(luminance * (2 * cov + 9e-4) / (vu + vv + 9e-4))
        close(metrics.ssim_map(p, t)[..., 5:-5, 5:-5].mean((1, 2, 3)), [np.mean(values)])

    def test_uiqi_is_the_mean_over_all_windows(self):
        p, t = pair(1, 2, 10, 9)
        values = []
        for x, y in zip(p[0].numpy(), t[0].numpy(), strict=True):
            for i in range(3):
                for j in range(2):
                    u, v = x[i : i + 8, j : j + 8].ravel(), y[i : i + 8, j : j + 8].ravel()
                    (vu, cov), (_, vv) = np.cov(u, v)
                    values.append(4 * cov * u.mean() * v.mean() / ((vu + vv) * (u.mean() ** 2 + v.mean() ** 2)))
        close(metrics.uiqi(p, t), [np.mean(values)])

    def test_uiqi_of_flat_windows(self):
        flat = torch.ones(1, 2, 13, 12, dtype=torch.float64)
        luminance = 2 * 0.1 * 0.2 / (0.1**2 + 0.2**2)  # variances of 0.1 and 0.2 do not round to 0
        for prediction, target, expected in ((0.1, 0.1, 1), (0.1, 0.2, luminance), (0.0, 0.0, 1), (0.0, 0.1, 0)):
            close(metrics.uiqi(prediction * flat, target * flat), [expected])

    def test_every_level_is_flat(self):
        """The moments of a flat window must not round away from it, whatever its level."""
        levels, others = torch.rand(2, 1, 500, 1, 1, dtype=torch.float64)
        flat = torch.ones(1, 500, 8, 9, dtype=torch.float64)
        expected = 2 * levels * others / (levels**2 + others**2)
        close(metrics.uiqi(levels * flat, others * flat), [expected.mean()], rel=1e-14)

    def test_uiqi_where_one_image_is_flat_or_both_of_mean_zero(self):
        _, target = pair(1, 2, 12, 12)
        close(metrics.uiqi(torch.full_like(target, 0.1), target), [0.0])
        checker = image([[1.0, -1.0] * 4, [-1.0, 1.0] * 4] * 4)
        close(metrics.uiqi(checker, -checker), [1.0])

    def test_one_level_of_16_bits_is_not_flat(self):
        target = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        target[..., 3, 3] -= 1 / 65535
        close(metrics.uiqi(torch.ones_like(target), target), [0.0], abs=1e-3)


class TestInvariants:
    def test_prediction_equal_to_target(self):
        _, target = pair(2, 31, 16, 16)
        best = {"psnr": math.inf, "psnr_published": math.inf, "sam": 0, "ergas": 0, "ssim": 1, "rmse": 0}
        for name in NAMES:
            expected = [best.get(name, 1.0)] * 2
            close(call(name, target, target), expected, abs=3e-6 if name == "sam" else 1e-12)

    def test_better_says_which_way_is_better(self):
        for name, metric in METRICS.items():
            good, bad = (float(call(name, *pair(1, 4, 16, 16, noise=noise))) for noise in (0.01, 0.1))
            assert (good > bad) == (metric.better == "higher"), name
            assert good != bad, name

    @pytest.mark.parametrize("piece", [metrics.PIECE, 1, 2 * 3 * 16 * 17])
    def test_batch_is_one_by_one(self, piece, monkeypatch):
        p, t = pair(3, 5, 16, 17)
        p[1], t[2] = p[1] * 1.5, t[2] * 0.5
        for name in NAMES:
            with monkeypatch.context() as patch:
                each = torch.cat([call(name, p[i : i + 1], t[i : i + 1]) for i in range(3)])
                patch.setattr(metrics, "PIECE", piece)
                value = call(name, p, t)
            assert value.shape == (3,), name
            assert len(set(value.tolist())) == 3, name
            close(value, each)

    def test_nothing_is_clipped(self):
        for name in NAMES:
            p, t = pair(1, 4, 16, 16)
            p[0, 1, 8, 8] = -0.5
            assert call(name, p, t) != call(name, p.clamp(0, 1), t), name
            t[0, 2, 4, 4] = 1.5
            assert call(name, p, t) != call(name, p, t.clamp(0, 1)), name

    def test_noncontiguous_input(self):
        p, t = (x.permute(0, 3, 1, 2) for x in pair(2, 16, 17, 4))
        for name in NAMES:
            close(call(name, p, t), call(name, p.contiguous(), t.contiguous()))


def test_no_piece_is_larger_than_allowed(monkeypatch):
    p, t = pair(3, 5, 16, 17)
    monkeypatch.setattr(metrics, "PIECE", 2 * 3 * 16 * 17 + 1)
    assert [tuple(piece.shape) for piece, _ in metrics._pieces(p, t, torch.float64)] == [
        (3, n, 16, 17) for n in (2, 2, 1)
    ]
    rows = [tuple(piece.shape) for piece, _ in metrics._pieces(p, t, torch.float64, rows=True)]
    assert rows == [(3, 5, n, 17) for n in (6, 6, 4)]


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_input_of_low_precision_is_computed_in_float64(self, dtype):
        p, t = pair(2, 4, 16, 16, dtype=dtype)
        for name in NAMES:
            value = call(name, p, t)
            assert value.dtype == torch.float64, name
            assert torch.equal(value, call(name, p.double(), t.double())), name

    def test_mixed_dtypes(self):
        p, t = pair(2, 4, 16, 16, dtype=torch.float32)
        assert torch.equal(metrics.ssim(p, t.double()), metrics.ssim(p, t))

    def test_small_noise_on_a_large_constant(self):
        """Where float32 arithmetic on float32 data goes wrong in the first digit."""
        p, t = pair(1, 2, 16, 16, noise=0.5)
        p, t = (p + 4096).float(), (t + 4096).float()
        x, y = p.double().numpy()[0], t.double().numpy()[0]
        bands = list(zip(x, y, strict=True))
        correlation = np.mean([np.corrcoef(u.ravel(), v.ravel())[0, 1] for u, v in bands])
        cosine = (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))
        close(metrics.cc(p, t), [correlation], rel=1e-9)
        close(metrics.sam(p, t), [np.degrees(np.arccos(cosine)).mean()], rel=1e-5)
        single = torch.rad2deg(tm.spectral_angle_mapper(p, t))
        assert abs(float(single) / float(metrics.sam(p, t)) - 1) > 0.1
        single = (p * t).mean((2, 3)) - p.mean((2, 3)) * t.mean((2, 3))
        single /= (p.square().mean((2, 3)) - p.mean((2, 3)) ** 2).clamp(min=1e-9).sqrt() * t.std((2, 3))
        assert abs(float(single.mean()) / correlation - 1) > 0.1


class TestZeroPixels:
    def test_sam_leaves_them_out(self):
        p, t = pair(2, 3, 8, 8)
        p[0, :, :, :4], t[0, :, 6:, :] = 0, 0
        close(
            metrics.sam(p, t), torch.cat([metrics.sam(p[:1, :, :6, 4:], t[:1, :, :6, 4:]), metrics.sam(p[1:], t[1:])])
        )

    def test_sam_of_nothing_else(self):
        p, t = pair(2, 3, 8, 8)
        p[1, :, :4], t[1, :, 4:] = 0, 0
        with pytest.raises(Undefined, match="sam: in image 1 every pixel is zero"):
            metrics.sam(p, t)

    def test_ergas_names_the_band_of_mean_zero(self):
        p, t = pair(2, 5, 8, 8)
        t[1, 3] = 0
        with pytest.raises(Undefined, match=r"in image 1 a band \(\[3\]\) of the target has mean 0"):
            metrics.ergas(p, t, 4)
        assert metrics.ergas(t[:1], p[:1], 4).isfinite()

    def test_cc_of_constants(self):
        p, t = pair(2, 2, 8, 8)
        p[1, 0], t[1, 1] = 0.1, 0.1
        with pytest.raises(Undefined, match="cc: in image 1 every band"):
            metrics.cc(p, t)

    def test_psnr_published_without_a_peak(self):
        p, t = pair(2, 2, 8, 8)
        t[1] = -t[1]
        with pytest.raises(Undefined, match=r"in image 1 the target.* has no positive value"):
            metrics.psnr_published(p, t)


@pytest.mark.parametrize("name", NAMES)
def test_unfit_input(name):
    def refused(match, *tensors):
        with pytest.raises(KAError, match=match) as error:
            call(name, *tensors)
        assert error.type is KAError  # nothing that `evaluate` would take for a value that is undefined

    for which, who in enumerate(("prediction", "target")):
        for value in (math.nan, math.inf, -math.inf):
            tensors = pair(2, 4, 16, 16, dtype=torch.float32)
            tensors[which][1, 2, 3, 5] = tensors[which][1, 2, 4, 0] = value
            refused(f"{who} has 2 values .* first at image 1, band 2, row 3, column 5;", *tensors)
        integers = list(pair(2, 4, 16, 16))
        integers[which] = (255 * integers[which]).int()
        refused(f"{who} is of torch.int32", *integers)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):  # a single one, in the last corner
        p, t = pair(1, 4, 16, 17, dtype=dtype)
        t[0, 3, 15, 16] = math.nan
        refused("target has 1 values .* band 3, row 15, column 16;", p, t)
    p, t = pair(2, 4, 16, 16)
    refused(r"\(2, 4, 16, 16\) and target \(1, 4, 16, 16\)", p, t[:1])
    refused("images, bands, rows, columns", p[0], t[0])
    refused("images, bands, rows, columns", p[:0], t[:0])
    refused("prediction is on meta, target on cpu", p.to("meta"), t)


@pytest.mark.parametrize(("name", "window"), [("ssim", 11), ("uiqi", 8)])
@pytest.mark.parametrize("axis", [2, 3])
def test_image_smaller_than_the_window(name, window, axis):
    p, t = pair(1, 2, 16, 16)
    assert call(name, p.narrow(axis, 0, window), t.narrow(axis, 0, window)).isfinite()
    with pytest.raises(KAError, match=f"its window {window}×{window}"):
        call(name, p.narrow(axis, 0, window - 1), t.narrow(axis, 0, window - 1))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_peak_and_ratio_are_positive(value):
    p, t = pair(1, 2, 16, 16)
    for refuse in (metrics.psnr, metrics.ssim):
        with pytest.raises(KAError, match=r"peak is .* positive"):
            refuse(p, t, value)
    with pytest.raises(KAError, match=r"ratio is .* positive"):
        metrics.ergas(p, t, value)


class TestSSIMAsLoss:
    def test_gradient(self):
        p, t = pair(1, 1, 11, 12)
        assert torch.autograd.gradcheck(metrics.ssim, (p.requires_grad_(), t.requires_grad_()), fast_mode=True)

    def test_the_window_as_a_matrix_and_as_a_sum_are_one(self, monkeypatch):
        """Patches and scenes are filtered in different ways."""
        p, t = pair(2, 3, 33, 50)
        found = []
        for dense in (49, 50):
            monkeypatch.setattr(metrics, "DENSE", dense)
            x = p.clone().requires_grad_()
            value = metrics.ssim(x, t)
            value.sum().backward()
            found.append((value.detach(), x.grad))
        (summed, gradient), (dense, dense_gradient) = found
        assert not torch.equal(gradient, dense_gradient)  # two ways indeed
        close(summed, dense, rel=1e-14)
        close(gradient, dense_gradient, rel=1e-10, abs=1e-16)

    def test_float32(self, monkeypatch):
        monkeypatch.setattr(metrics, "PIECE", 2 * 3 * 16 * 16)
        p, t = pair(2, 4, 16, 16, dtype=torch.float32)
        exact, single = p.clone().requires_grad_(), p.clone().requires_grad_()
        metrics.ssim(exact, t).sum().backward()
        value = metrics.ssim(single, t, dtype=torch.float32, check=False)
        assert value.dtype == torch.float32
        value.sum().backward()
        assert single.grad.dtype == torch.float32
        assert single.grad.abs().max() > 1e-3
        torch.testing.assert_close(value, metrics.ssim(p, t).float(), rtol=1e-5, atol=0)
        torch.testing.assert_close(single.grad, exact.grad, rtol=1e-3, atol=1e-5)

    def test_autocast_does_not_reach_it(self):
        p, t = pair(2, 4, 16, 16, dtype=torch.float32)
        outside = metrics.ssim(p, t, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (p @ t).dtype == torch.bfloat16
            assert torch.equal(metrics.ssim(p, t, dtype=torch.float32), outside)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_refused(self, dtype):
        with pytest.raises(KAError, match=f"dtype is {dtype}"):
            metrics.ssim(*pair(1, 2, 16, 16), dtype=dtype)

    def test_without_the_check_nan_passes_but_shapes_do_not(self):
        p, t = pair(1, 2, 16, 16)
        p[0, 0, 0, 0] = math.nan
        assert metrics.ssim(p, t, check=False).isnan().all()
        with pytest.raises(KAError, match="give both the same"):
            metrics.ssim(p, t[:, :1], check=False)


class TestMeasure:
    def test_all_in_table_order(self):
        p, t = pair(2, 4, 16, 16)
        values = measure(p, t, 4)
        assert list(values) == ["psnr", "sam", "ergas", "ssim", "rmse", "cc", "uiqi", "psnr_published"]
        for name, value in values.items():
            assert METRICS[name].name == name
            assert torch.equal(value, call(name, p, t))
        assert torch.equal(values["ergas"], 2 * measure(p, t, 8)["ergas"])

    def test_chosen_names_in_their_order(self):
        assert list(measure(*pair(1, 2, 5, 5), 4, ["sam", "psnr"])) == ["sam", "psnr"]  # too small for others

    def test_unknown_names(self):
        with pytest.raises(KAError, match=r"metric 'PSNR' is unknown; did you mean 'psnr'\? choose one of psnr, sam"):
            measure(*pair(1, 2, 16, 16), 4, ["sam", "PSNR", "fid"])

    def test_no_gradients_are_recorded(self):
        p, t = pair(1, 2, 16, 16)
        assert not any(value.requires_grad for value in measure(p.requires_grad_(), t, 4).values())
