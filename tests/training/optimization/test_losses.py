import torch

from training.optimization.losses import ERROR_FLOOR, relative_error_db, spectral_energy


def spectrograms(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 1, 65, 20, dtype=torch.complex64, generator=generator)


def test_silence_as_the_estimate_costs_the_energy_of_the_stem() -> None:
    references = torch.zeros(1, 2, 1, 4, 4, dtype=torch.complex64)
    references[:, 0] = 3.0  # energy 144
    references[:, 1] = 1.0  # energy 16, mixture 256
    found = relative_error_db(torch.zeros_like(references), references)
    expected = (10 * torch.tensor([144 / 256 + ERROR_FLOOR, 16 / 256 + ERROR_FLOOR]).log10()).mean()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_perfect_estimate_costs_the_floor() -> None:
    references = spectrograms(0)
    torch.testing.assert_close(relative_error_db(references, references), torch.tensor(-10.0))


def test_ten_decibels_less_error_are_ten_less() -> None:
    references, error = spectrograms(0), spectrograms(1)
    worse, better = (relative_error_db(references + scale * error, references) for scale in (100, 100 * 10**-0.5))
    assert abs((worse - better).item() - 10) < 0.01  # the floor takes a little


def test_the_level_of_an_example_does_not_matter() -> None:
    references, estimates = spectrograms(0), spectrograms(1)
    torch.testing.assert_close(
        relative_error_db(estimates, references),
        relative_error_db(100 * estimates, 100 * references),
        rtol=0,
        atol=1e-3,
    )


def test_silence_has_a_finite_gradient() -> None:
    estimates = torch.zeros(1, 2, 1, 4, 4, dtype=torch.complex64, requires_grad=True)
    relative_error_db(estimates, torch.zeros(1, 2, 1, 4, 4, dtype=torch.complex64)).backward()
    assert estimates.grad is not None and torch.isfinite(torch.view_as_real(estimates.grad)).all()


def test_the_accompaniment_of_four_stems_counts() -> None:
    """The last estimate is the whole mixture: the accompaniment has the vocals, a tenth of the energy, too much."""
    references = torch.zeros(1, 4, 1, 10, 10, dtype=torch.complex64)
    references[:, 0, :, 0] = 10.0
    references[:, 3, :, 1:] = 10.0
    estimates = torch.cat([torch.zeros_like(references[:, :3]), references.sum(dim=1, keepdim=True)], dim=1)
    of_stems = torch.tensor([0.1, 0.0, 0.0, 0.1])
    accompaniment = torch.tensor([0.1])
    expected = (10 * (torch.cat([of_stems, accompaniment]) + ERROR_FLOOR).log10()).mean()
    torch.testing.assert_close(relative_error_db(estimates, references), expected, rtol=0, atol=1e-4)


def test_the_gradient_of_the_energy_is_what_differences_say() -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(2, 2, 1, 3, 4, dtype=torch.complex128, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(spectral_energy, (few,))
