from itertools import product

import numpy as np
import pytest
import torch

from ka.data import Degradation, Patches, Scene, SceneSet, bicubic, degrade, observe, respond
from ka.data.scenes import ARRAYS, KeptScenes, check_values
from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700, broad_bands, gaussian
from ka.errors import KAError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def mirrored(i, n, edge):
    """Index of sample i beyond the border, with the edge pixel repeated (edge=1) or not (edge=0)."""
    while not 0 <= i < n:
        i = -i - edge if i < 0 else 2 * n - 2 + edge - i
    return i


def degrade_by_definition(gt, ratio, size, sigma, offset, *, edge=0):
    bands, h, w = gt.shape
    half, out = size // 2, np.zeros((bands, h // ratio, w // ratio))
    weights = {(i, j): np.exp(-(i * i + j * j) / (2 * sigma**2)) for i, j in product(range(-half, half + 1), repeat=2)}
    for y, x in product(range(h // ratio), range(w // ratio)):
        for (i, j), weight in weights.items():
            row, col = mirrored(y * ratio + offset + i, h, edge), mirrored(x * ratio + offset + j, w, edge)
            out[:, y, x] += weight * gt[:, row, col].astype(np.float64)
    return out / sum(weights.values())


def keys(t, a=-0.5):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def bicubic_by_definition(lr, ratio):
    bands, h, w = lr.shape
    out = np.zeros((bands, h * ratio, w * ratio))
    for y, x in product(range(h * ratio), range(w * ratio)):
        v, u = (y + 0.5) / ratio - 0.5, (x + 0.5) / ratio - 0.5
        for i, j in product(range(int(v) - 3, int(v) + 4), range(int(u) - 3, int(u) + 4)):
            weight = keys(v - i) * keys(u - j)
            out[:, y, x] += weight * lr[:, mirrored(i, h, 1), mirrored(j, w, 1)].astype(np.float64)
    return out


class TestDegrade:
    def test_gaussian(self):
        side = np.exp(-2)
        np.testing.assert_allclose(gaussian(3, 0.5), np.array([side, 1, side]) / (1 + 2 * side), rtol=1e-15)
        assert gaussian(7, 2).sum() == pytest.approx(1, abs=1e-15)

    @pytest.mark.parametrize(
        ("ratio", "size", "sigma", "offset"),
        [(4, 3, 0.5, 2), (4, 3, 0.5, 0), (4, 7, 2.0, 3), (3, 5, 1.0, 1), (8, 9, 2, 4)],
    )
    def test_against_the_definition(self, ratio, size, sigma, offset):
        gt = noise(2, 4 * ratio, 3 * ratio)
        lr = degrade(gt, Degradation(ratio, size, sigma, offset))
        assert lr.dtype == np.float32
        np.testing.assert_allclose(lr, degrade_by_definition(gt, ratio, size, sigma, offset), atol=1e-7)

    @pytest.mark.parametrize(("ratio", "size"), [(4, 3), (8, 7)])
    def test_the_border_plays_no_part(self, ratio, size):
        gt = noise(1, 4 * ratio, 4 * ratio)
        expected = degrade_by_definition(gt, ratio, size, 1.0, ratio // 2, edge=1)
        np.testing.assert_allclose(degrade(gt, Degradation(ratio, size, 1.0)), expected, atol=1e-7)

    def test_offset(self):
        gt = noise(2, 8, 12)
        np.testing.assert_array_equal(degrade(gt, Degradation(4, 1)), gt[:, 2::4, 2::4])
        np.testing.assert_array_equal(degrade(gt, Degradation(4, 1, offset=0)), gt[:, ::4, ::4])
        np.testing.assert_array_equal(degrade(gt, Degradation(2, 1)), gt[:, 1::2, 1::2])

    def test_a_flip_moves_the_offset(self):
        gt = noise(2, 16, 16)
        flipped = degrade(gt[:, ::-1, ::-1], Degradation(offset=1))
        np.testing.assert_allclose(flipped, degrade(gt, Degradation(4))[:, ::-1, ::-1], atol=1e-7)

    def test_refuses_a_size_off_the_grid(self):
        with pytest.raises(KAError, match=r"10×12 pixels does not divide by the ratio 4; crop it"):
            degrade(noise(1, 10, 12), Degradation(4))


class TestBicubic:
    @pytest.mark.parametrize(("h", "w", "ratio"), [(5, 4, 4), (3, 6, 3), (1, 2, 4), (4, 4, 8), (3, 3, 1)])
    def test_against_the_definition(self, h, w, ratio):
        lr = noise(2, h, w)
        up = bicubic(lr, ratio)
        assert up.dtype == np.float32
        np.testing.assert_allclose(up, bicubic_by_definition(lr, ratio), atol=1e-6)

    def test_constant_and_ramp(self):
        np.testing.assert_allclose(bicubic(np.full((1, 4, 5), 0.3, np.float32), 4), 0.3, atol=1e-7)
        ramp = np.tile(np.arange(8, dtype=np.float32), (1, 8, 1))
        centres = (np.arange(32) + 0.5) / 4 - 0.5
        inner = slice(8, 24)  # the mirrored border bends a ramp
        np.testing.assert_allclose(bicubic(ramp, 4)[0, 5, inner], centres[inner], atol=1e-6)

    def test_is_not_clipped(self):
        step = np.zeros((1, 8, 8), np.float32)
        step[:, :, 4:] = 1
        up = bicubic(step, 4)
        assert up.min() < -0.05
        assert up.max() > 1.05

    def test_differs_from_torch(self):
        lr = noise(1, 6, 6)
        other = torch.nn.functional.interpolate(torch.from_numpy(lr)[None], scale_factor=4, mode="bicubic")[0].numpy()
        assert np.abs(other - bicubic(lr, 4)).max() > 0.01


class TestResponse:
    def test_nikon(self):
        assert NIKON_D700.shape == (3, 31)
        np.testing.assert_allclose(NIKON_D700.sum(1), 1, atol=1e-15)
        np.testing.assert_allclose(NIKON_D700[:, 0] * [255, 203, 251], [2, 1, 7], atol=1e-12)
        np.testing.assert_array_equal(CAVE_WAVELENGTHS[NIKON_D700.argmax(1)], [610, 530, 460])

    def test_against_the_definition(self):
        gt = noise(31, 3, 4)
        rgb = respond(gt, NIKON_D700)
        assert rgb.dtype == np.float32
        expected = (NIKON_D700[:, :, None, None] * gt.astype(np.float64)[None]).sum(1)
        np.testing.assert_allclose(rgb, expected, atol=1e-7)

    def test_refuses_another_sensor(self):
        with pytest.raises(KAError, match=r"response has 31 bands and the scene 5; use the sensor's own"):
            respond(noise(5, 2, 2), NIKON_D700)

    def test_broad_bands(self):
        srf = broad_bands(np.array([400.0, 500, 600, 700]), [(400, 500), (590, 610)])
        np.testing.assert_array_equal(srf, [[0.5, 0.5, 0, 0], [0, 0, 1, 0]])
        with pytest.raises(KAError, match=r"no band lies between 410 and 420 nm"):
            broad_bands(np.array([400.0, 500]), [(410, 420)])


class TestDegradation:
    def test_defaults_are_the_protocol(self):
        assert Degradation() == Degradation(4, 3, 0.5, None)
        assert Degradation().start == 2
        assert Degradation(8).start == 4
        assert Degradation(8, offset=0).start == 0

    @pytest.mark.parametrize(
        ("field", "values", "cure"),
        [
            ("ratio", (0, -4, 4.0, "4", True, None), "use 4"),
            ("blur_size", (0, 2, 3.0, "3", -1, True), "use 3, 5 or 7"),
            ("blur_sigma", (0, -1.0, "0.5", float("nan"), float("inf"), True, None), "use 0.5"),
            ("offset", (4, -1, 1.0, "2", False), "leave it None"),
        ],
    )
    def test_refuses(self, field, values, cure):
        for value in values:
            with pytest.raises(KAError, match=rf"^{field}: {value!r} .*{cure}"):
                Degradation(**{field: value})

    def test_observe_passes_all_of_it_on(self):
        gt = noise(31, 16, 16)
        scene = observe("x", gt, NIKON_D700, Degradation(8, 5, 1.5, 1))
        np.testing.assert_array_equal(scene.lr, degrade(gt, Degradation(8, 5, 1.5, 1)))
        np.testing.assert_array_equal(scene.up, bicubic(scene.lr, 8))
        np.testing.assert_array_equal(scene.msi, respond(gt, NIKON_D700))
        assert scene.gt is gt


class TestCheckValues:
    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (np.nan, "here: NaN in data; mend or leave out"),
            (np.inf, "here: infinity in data; mend or leave out"),
            (-0.01, "here: data not in .* scale it"),
            (1.01, "here: data not in .* scale it"),
            (250, "here: data not in .* divide by 255"),
            (65535, "here: data not in .* divide by 65535"),
        ],
    )
    def test_refuses(self, value, says):
        values = noise(3, 4, 4)
        check_values(values, "here")
        values[1, 2, 3] = value
        with pytest.raises(KAError, match=says):
            check_values(values, "here")

    def test_tolerance(self):
        check_values(np.array([-1e-6, 1 + 9e-7]), "here")
        check_values(np.array([-0.5, 1.5]), "here", -0.5, 1.5)
        with pytest.raises(KAError, match=r"not in \[-0.5, 1.5\]"):
            check_values(np.array([-0.6, 1.5]), "here", -0.5, 1.5)


def scene_set(*sizes, ratio=4, bands=31):
    srf = NIKON_D700[:, :bands] if bands < 31 else NIKON_D700
    scenes = [
        observe(f"s{i}", noise(bands, *size, seed=i), srf, Degradation(ratio, offset=0)) for i, size in enumerate(sizes)
    ]
    return SceneSet("cave", "train", Degradation(ratio, offset=0), None, (2, 1, 0), ("R", "G", "B"), scenes)


class TestScene:
    def test_crop(self):
        scene = scene_set((32, 40))[0]
        crop = scene.crop(8, 4, 16, 24)
        np.testing.assert_array_equal(crop.gt, scene.gt[:, 8:24, 4:28])
        np.testing.assert_array_equal(crop.up, scene.up[:, 8:24, 4:28])
        np.testing.assert_array_equal(crop.msi, scene.msi[:, 8:24, 4:28])
        np.testing.assert_array_equal(crop.lr, scene.lr[:, 2:6, 1:7])
        assert crop.name == "s0[8:24,4:28]"
        crop.gt[:] = 7  # a copy: the scene stays
        assert scene.gt.max() <= 1

    def test_refuses_off_the_grid(self):
        for box in [(2, 0, 8, 8), (0, 3, 8, 8), (0, 0, 6, 8), (0, 0, 8, 7)]:
            with pytest.raises(KAError, match=r"s0: the crop .* use multiples of the ratio 4"):
                scene_set((16, 16))[0].crop(*box)

    def test_refuses_outside(self):
        for box in [(-4, 0, 8, 8), (0, 12, 8, 8), (0, 0, 20, 8), (0, 0, 0, 8)]:
            with pytest.raises(KAError, match=r"s0: the crop .* leaves the 16×16 scene; shrink it"):
                scene_set((16, 16))[0].crop(*box)

    def test_load_gives_float32(self):
        scene = Scene("x", *(noise(2, 4, 4).astype(np.float64) for _ in range(4)))
        assert {getattr(scene.load(), key).dtype for key in ARRAYS} == {np.dtype(np.float32)}


class TestSceneSet:
    def test_is_a_sequence(self):
        scenes = scene_set((8, 8), (8, 8))
        assert [scene.name for scene in scenes] == ["s0", "s1"]
        assert (len(scenes), scenes[1].name, scenes.n_bands, scenes.n_msi) == (2, "s1", 31, 3)


class TestPatches:
    def test_count_of_the_published_file(self):
        one = np.broadcast_to(np.float32(0), (1, 512, 512))
        scene = Scene("x", one, one[:, :128, :128], one, one)
        patches = Patches(SceneSet("cave", "train", Degradation(), None, (0, 0, 0), ("R",), [scene] * 20))
        assert patches.grids.tolist() == [[14, 14]] * 20
        assert len(patches) == 3920

    @pytest.mark.parametrize(("size", "grid"), [(16, (4, 6)), (32, (2, 4)), (48, (1, 2))])
    def test_grid(self, size, grid):
        patches = Patches(scene_set((48, 64), bands=31), size, 8)
        assert patches.grids.tolist() == [list(grid)]
        assert len(list(patches)) == len(patches) == grid[0] * grid[1]

    def test_are_crops_in_order(self):
        scenes = scene_set((24, 32), (24, 32))
        patches = Patches(scenes, 16, 4)
        assert patches.grids.tolist() == [[2, 4]] * 2
        expected = scenes[1].crop(4, 8, 16, 16)
        for key in ARRAYS:
            np.testing.assert_array_equal(getattr(patches[8 + 4 + 2], key), getattr(expected, key))
        with pytest.raises(IndexError):
            patches[16]
        with pytest.raises(IndexError):
            patches[-1]

    def test_whole_scene_is_one_patch(self):
        assert len(Patches(scene_set((16, 16)), 16, 4)) == 1

    @pytest.mark.parametrize(
        ("size", "stride", "says"),
        [
            (18, 8, "patch size: 18 is not a positive multiple of the ratio 4"),
            (0, 8, "patch size: 0 is not"),
            (16, 6, "patch stride: 6 is not a positive multiple of the ratio 4"),
            (16, 0, "patch stride: 0 is not"),
            (40, 8, "patch size: 40 does not fit the 32×64 pixels of s0; use at most 32"),
        ],
    )
    def test_refuses(self, size, stride, says):
        with pytest.raises(KAError, match=says):
            Patches(scene_set((32, 64)), size, stride)

    def test_batch(self):
        patches = Patches(scene_set((32, 32)), 16, 4)
        batch = patches.batch([3, 0])
        assert {key: tuple(x.shape) for key, x in batch.items()} == {
            "gt": (2, 31, 16, 16),
            "up": (2, 31, 16, 16),
            "lr": (2, 31, 4, 4),
            "msi": (2, 3, 16, 16),
        }
        for key, x in batch.items():
            assert x.dtype == torch.float32
            np.testing.assert_array_equal(x[0].numpy(), getattr(patches[3], key))
            np.testing.assert_array_equal(x[1].numpy(), getattr(patches[0], key))

    def test_augmentation_is_the_same_for_all_arrays(self):
        """Each turn is found from `gt` alone; the other arrays must have had it too, and all eight must occur."""
        patches = Patches(scene_set((32, 32)), 16, 4)
        batch, plain = patches.batch([5] * 64, seed=3), patches.batch([5])
        symmetries = [
            lambda x, k=k, f=f: torch.rot90(x, k, (-2, -1)).flip(-1) if f else torch.rot90(x, k, (-2, -1))
            for k in range(4)
            for f in (False, True)
        ]
        seen = set()
        for i in range(64):
            (which,) = [n for n, turn in enumerate(symmetries) if torch.equal(turn(plain["gt"][0]), batch["gt"][i])]
            seen.add(which)
            for key in ARRAYS:
                assert torch.equal(symmetries[which](plain[key][0]), batch[key][i]), key
        assert seen == set(range(8))

    def test_augmentation_follows_the_seed(self):
        patches = Patches(scene_set((32, 32)), 16, 4)
        first, again, other = (patches.batch(range(16), seed=seed)["gt"] for seed in ((1, 2), (1, 2), (1, 3)))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestDevicePatches:
    """On the CPU, which is a device like any other."""

    def test_batches_are_those_of_the_host(self):
        patches = Patches(scene_set((24, 40), (24, 40), (24, 40)), 16, 4)
        self.same(patches)

    def test_scenes_of_different_sizes(self):
        patches = Patches(scene_set((32, 16), (24, 40), (16, 68)), 16, 4)
        assert patches.grids.tolist() == [[4, 1], [2, 6], [1, 13]]
        self.same(Patches(scene_set((40, 16), (24, 40), (16, 72)), 16, 4), 6 + 12 + 14)

    def test_scenes_that_know_their_sizes_are_not_read_to_be_counted(self):
        def make(name):
            raise AssertionError(f"{name} was read")

        scenes = KeptScenes(("a", "b"), make, [(24, 40), (16, 72)])
        assert len(Patches(SceneSet("x", "train", Degradation(), None, (0, 0, 0), ("R",), scenes), 16, 4)) == 12 + 14

    def same(self, patches, count=36):
        assert len(patches) == count
        held = patches.to(torch.device("cpu"))
        half = count // 2
        draws = [(range(start, start + half), seed) for start in (0, half) for seed in (None, 1, (7, 2))]
        assert {*range(count)} == {i for indices, _ in draws for i in indices}
        turns = {tuple(row) for row in held.plan(draws)[:, :, 3].tolist()}
        assert {turn for row in turns for turn in row} == set(range(8))
        for host, device in zip(patches.batches(draws), held.batches(draws), strict=True):
            assert list(device) == ["gt", "up", "msi", "lr"]
            assert all(torch.equal(x, host[key]) for key, x in device.items())
            assert all(x.dtype == torch.float32 for x in device.values())

    def test_each_symmetry(self):
        """Against turning a patch cut by hand; which number is which symmetry is the host's to say."""
        for turn in range(8):
            patches = Patches(scene_set((24, 32), (24, 32)), 16, 4)
            held = patches.to(torch.device("cpu"))
            seed = next(s for s in range(100) if np.random.default_rng(s).integers(8, size=1)[0] == turn)
            scene = torch.from_numpy(patches.scene_set[1].gt[:, 4:20, 8:24])
            expected = torch.rot90(scene, turn % 4, (1, 2))
            batch = held.batch([8 + 4 + 2], seed)
            assert torch.equal(batch["gt"][0], expected.flip(2) if turn >= 4 else expected)
            assert all(torch.equal(x, patches.batch([14], seed)[key]) for key, x in batch.items())

    def test_plan_is_drawn_at_once_and_in_order(self):
        held = Patches(scene_set((32, 32)), 16, 4).to(torch.device("cpu"))
        plan = held.plan([([3, 0], 1), ([7, 7], None)])
        assert plan.shape == (2, 2, 4)
        assert plan[0, :, :3].tolist() == [[0, 0, 3], [0, 0, 0]]  # the first row holds four patches
        assert plan[1].tolist() == [[0, 1, 3, 0]] * 2
        assert torch.equal(held.plan([([7, 7], None)])[0], plan[1])

    def test_memory_is_known_before(self):
        patches = Patches(scene_set((24, 40), (24, 40)), 16, 4)
        held = patches.to(torch.device("cpu"))
        low = sum(scene.lr.nbytes for scene in patches.scene_set)
        assert held.low.values.nbytes == low
        assert patches.nbytes == held.sharp.values.nbytes + low == 4 * 2 * 65 * 24 * 40 + low

    def test_refuses_other_patches(self):
        held = Patches(scene_set((32, 32)), 16, 4).to(torch.device("cpu"))
        for wrong in (-1, 16):
            with pytest.raises(IndexError):
                held.batch([0, wrong])
