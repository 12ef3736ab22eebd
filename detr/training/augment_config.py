"""Parameters of the paper's augmentation. Needs the standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Probabilities and sizes of the augmentation; the defaults are the paper's. All sides are in pixels.

    Attributes:
        flip: probability of a mirrored image.
        scales: shorter sides of the result, one of which is drawn.
        longest: limit of the longer side.
        crop: probability that the image is first resized to one of `crop_scales` and cropped.
        crop_scales: shorter sides before the crop.
        crop_range: smallest and largest side of the crop, limited by the image.
    """

    flip: float = 0.5
    scales: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    longest: int = 1333
    crop: float = 0.5
    crop_scales: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        for name, chance in (("flip", self.flip), ("crop", self.crop)):
            if not 0 <= chance <= 1:
                raise ValueError(f"{name} is {chance}, expected a chance from 0 to 1")
        for name, sides in (("scales", self.scales), ("crop_scales", self.crop_scales)):
            _check_sides(name, sides)
            if list(sides) != sorted(set(sides)):
                raise ValueError(f"{name} is {sides}, expected ascending sides, each once")
        _check_sides("longest", (self.longest,))
        _check_sides("crop_range", self.crop_range)
        least, most = self.crop_range
        if least > most:
            raise ValueError(f"crop_range is {self.crop_range}, expected the smallest and the largest side")


def _check_sides(name: str, sides: tuple[int, ...]) -> None:
    if not sides or any(side != int(side) or side < 1 for side in sides):
        raise ValueError(f"{name} is {sides}, expected whole numbers of pixels, at least 1")
