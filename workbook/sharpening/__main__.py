"""`python -m workbook.sharpening LR MSI`: sharpen image files (`make sharpen`)."""

import argparse
import logging
import sys
from dataclasses import MISSING, fields

from ka.errors import KAError
from ka.evaluation import in_text
from ka.metrics import METRICS
from workbook.sharpening.files import Request, Sharpened, pairs_in, sharpen_file, tell

NUMBERS = {"max": float, "msi_max": float, "blur_size": int, "blur_sigma": float, "tile": int}


def main(arguments: list[str] | None = None) -> int:
    """Sharpen one pair, or folders of pairs, and say what was found and written; 1 where a pair failed."""
    parser = argparse.ArgumentParser(prog="python -m workbook.sharpening", description=__doc__)
    for field in fields(Request):
        option = field.name if field.default is MISSING else "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=NUMBERS.get(field.name, str),
                            default=None if field.default is MISSING else field.default)  # fmt: skip
    logging.basicConfig(format="%(message)s")
    failed = 0
    try:
        requests = pairs_in(Request(**vars(parser.parse_args(arguments))))
    except KAError as error:
        print(error, file=sys.stderr)
        return 1
    for request in requests:
        try:
            _tell(sharpen_file(request, tell))
        except KAError as error:
            failed += 1
            print(error, file=sys.stderr)
    if len(requests) > 1:
        print(f"{len(requests) - failed} of {len(requests)} pairs are sharpened")
    return int(failed > 0)


def _tell(sharpened: Sharpened) -> None:
    pair = sharpened.pair
    print(f"{pair.lr.where}: {'; '.join(pair.notes)}")
    for method, evaluation in sharpened.metrics["methods"].items():
        means = [(METRICS[name], evaluation["mean"][name]) for name in ("psnr", "sam", "ergas")]
        told = [f"{metric.label} {in_text(mean)} {metric.unit}".strip() for metric, mean in means]
        print(f"  {method}: {', '.join(told)}")
    print(f"{sharpened.path}: {'×'.join(map(str, sharpened.shape))} (bands, height, width), {sharpened.seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
