"""The report of one registration: a single HTML file with scores and embedded figures."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from f3r_jax.register.guidance_report import facts as of_guidance
from f3r_jax.register.viewer import Viewer

CAPTIONS = {
    "overlay": "Before and after: the moving scan after the affine step, the fixed scan, and the moving scan warped.",
    "checkerboard": "Alternating tiles of the fixed scan (grey) and the other scan (tinted): edges should continue.",
    "uncertainty": "The spread of the displacement over other settings and positions, in mm.",
    "deformation": "The deformation without its affine part: as a grid, and as local expansion and contraction.",
}
VERDICTS = {
    "ok": "Verdict: ok",
    "check": "Verdict: check this result",
    "failed": "Verdict: failed, do not use this result",
}
MEASURES = {"dice": "Dice, %", "asd_mm": "ASD, mm", "hd95_mm": "HD95, mm"}


def page(summary: Mapping, images: Sequence[Path], viewer: Viewer | None = None) -> str:
    """Renders the report as HTML from the content of `summary.json`, the PNG files and the viewer, if there is one."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("f3r_jax.register"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    figures = [
        {"alt": path.stem, "caption": CAPTIONS[path.stem], "data": base64.b64encode(path.read_bytes()).decode()}
        for path in images
    ]
    names = {side: Path(summary["settings"][side]).name for side in ("fixed", "moving")}
    return environment.get_template("pair.html.jinja").render(
        summary=summary,
        names=names,
        stages=stages(summary),
        figures=figures,
        measures=MEASURES,
        facts=_facts(summary),
        verdicts=VERDICTS,
        viewer=viewer,
    )


def stages(summary: Mapping) -> dict[str, Mapping]:
    """Scores of each stage, in order of the stages."""
    return {"before": summary["before"], "affine": summary["affine"], "after": summary}


def similarities(summary: Mapping) -> str:
    """The MIND difference of each stage as text, in order of the stages."""
    return ", ".join(f"{name} {value:.4f}" for name, value in summary["similarity"].items() if value is not None)


def _facts(summary: Mapping) -> list[tuple[str, str]]:
    """The rows below the table of scores, as (name, value)."""
    errors = [f"{name} {scores['tre_mm']:.2f} mm" for name, scores in stages(summary).items() if "tre_mm" in scores]
    residual = summary["inverse_residual_voxels"]
    seconds = [f"{name} {value:.1f}" for name, value in summary["seconds"].items()]
    facts = [
        ("MIND difference", similarities(summary)),
        ("Landmark error", ", ".join(errors)),
        ("Folding", f"{summary['folding_percent']:.3f} % of voxels"),
        ("Non-diffeomorphic volume", f"{summary['nondiffeomorphic_percent']:.4f} % (Liu et al., 2024)"),
        ("SD of log Jacobian", f"{summary['sd_log_jacobian']:.3f}"),
        ("Inverse", f"residual {residual['mean']:.4f} voxels on average, {residual['max']:.2f} at most"),
        *of_guidance(summary),
        ("Seconds", ", ".join(seconds)),
    ]
    return [(name, value) for name, value in facts if value]
