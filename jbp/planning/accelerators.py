"""What the makers publish of three accelerators, and which of their figures a prediction uses.

FLOPs are dense ones, without the factor of two for weights half of which are zero. A link's figure is of one direction,
where makers like to give the sum of both. Nothing here was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PRECISIONS = ("default", "float32", "tf32", "bfloat16")
"""In which numbers float32 arrays are multiplied; sums are float32 in all of them."""


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator, by its published figures."""

    name: str
    peaks: Mapping[str, float]
    """FLOPs a second of matrix products, by the precision of what is multiplied."""
    default: str
    """How JAX multiplies float32 arrays there if it is not told."""
    memory: float
    """Bytes on one device."""
    bandwidth: float
    """Bytes a second between a device and its memory."""
    neighbours: int
    """So many devices are joined by `link`; more, by `network`."""
    link: float
    """Bytes a second that one device sends round a ring of neighbours."""
    network: float
    """Bytes a second that one device sends beyond them."""
    sources: tuple[str, ...]
    notes: tuple[str, ...]
    """Which of the published figures were taken where there is a choice, and why."""


_HOPPER = {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12}
_HOPPER_NOTES = (
    "FLOPs: the data sheets give TF32 and BF16 with sparsity; half of that is the dense rate (989 and 1,979 TFLOP/s)",
    "JAX multiplies float32 arrays in TF32 there unless it is asked for the highest precision",
    "link: NVLink's 900 GB/s are both directions, so 450 GB/s one way, among the 8 of one machine",
    "network: one InfiniBand or Ethernet port of 400 Gb/s for each accelerator, as in DGX: 50 GB/s one way",
)

ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType(
    {
        "h100": Accelerator(
            name="H100 SXM",
            peaks=MappingProxyType(_HOPPER),
            default="tf32",
            memory=80e9,
            bandwidth=3.35e12,
            neighbours=8,
            link=450e9,
            network=50e9,
            sources=(
                "NVIDIA H100 Tensor Core GPU Architecture, white paper, 2022, table of peak rates",
                "NVIDIA H100 Tensor Core GPU, data sheet (SXM)",
                "NVIDIA DGX H100, data sheet (network)",
            ),
            notes=_HOPPER_NOTES,
        ),
        "h200": Accelerator(
            name="H200 SXM",
            peaks=MappingProxyType(_HOPPER),
            default="tf32",
            memory=141e9,
            bandwidth=4.8e12,
            neighbours=8,
            link=450e9,
            network=50e9,
            sources=(
                "NVIDIA H200 Tensor Core GPU, data sheet (SXM), 2024: arithmetic as H100's",
                "NVIDIA DGX H200, data sheet (network)",
            ),
            notes=_HOPPER_NOTES,
        ),
        "tpu-v5p": Accelerator(
            name="TPU v5p",
            peaks=MappingProxyType({"float32": 459e12 / 6, "bfloat16": 459e12}),
            default="bfloat16",
            memory=95e9,
            bandwidth=2765e9,
            neighbours=8960,
            link=200e9,
            network=50e9 / 8,
            sources=("Google Cloud, documentation, TPU v5p: key specifications of the system architecture",),
            notes=(
                "FLOPs: only BF16 is published; JAX multiplies float32 arrays so unless it is asked for the highest "
                "precision, which takes 6 products of BF16: a sixth is the figure for float32, derived, not published",
                "memory: tables of different dates say 95 GB and 95 GiB; the smaller is taken",
                "link: 1,200 GB/s are published for a chip's six links, both directions; a ring along one axis of the "
                "torus uses two of the six, so 200 GB/s one way",
                "network: 50 Gb/s for each chip beyond a pod of 8,960, which no prediction up to 1,024 reaches",
            ),
        ),
    }
)
"""By the name that `jbp plan --accelerator` takes."""


@dataclass(frozen=True)
class Machine:
    """An accelerator as a prediction uses it.

    Raises: ValueError for a precision of which nothing is published, or a latency below 0.
    """

    accelerator: Accelerator
    precision: str = "default"
    latency: float = 1e-6
    """Seconds for one hop from device to device: an assumption, not published."""

    def __post_init__(self) -> None:
        known = self.accelerator.peaks
        if self.precision != "default" and self.precision not in known:
            raise ValueError(
                f"nothing is published of {self.precision} on {self.accelerator.name}: take one of default, "
                f"{', '.join(known)}"
            )
        if not 0 <= self.latency < float("inf"):
            raise ValueError(f"latency must be a finite time of at least 0, but is {self.latency!r}")

    @property
    def multiplied_in(self) -> str:
        """The precision of what is multiplied."""
        return self.accelerator.default if self.precision == "default" else self.precision

    @property
    def peak(self) -> float:
        """FLOPs a second."""
        return self.accelerator.peaks[self.multiplied_in]

    def reach(self, size: int, stride: int) -> float:
        """Bytes a second that each of a group of `size` devices sends round a ring, every `stride`-th device in it.

        Within a machine that is its link. Beyond, several rings share out the work: of a group that has g devices in
        each machine every device sends 1/g of the bytes through its own port, as far as their links carry it.
        """
        a = self.accelerator
        if size * stride <= a.neighbours:
            return a.link
        return min(a.link, max(1, a.neighbours // stride) * a.network)
