"""`unet promote`: the gate compares challenger and champion on today's test images, and moves the alias or not."""

from dataclasses import asdict
from pathlib import Path

from pipeline import tracking
from pipeline.command import say
from pipeline.json_file import write_json
from pipeline.judging import TEST_SET_TAG, DataPaths, judge_versions
from pipeline.placement import read_placement
from pipeline.receipt import read_receipt, registered_version
from pipeline.report_page import add_promotion


def promote(*, data: DataPaths, model: Path, receipt: Path, report: Path) -> None:
    """Score, judge, move the alias if the gate opens, and write verdict and page beside the report."""
    placement = read_placement()
    client = tracking.connect(placement.tracking_uri, placement.experiment)
    challenger = registered_version(client, read_receipt(receipt), model)
    champion = tracking.version_by_alias(client, challenger.name, tracking.CHAMPION)
    if champion is not None and champion.weights_sha256 == challenger.weights_sha256:
        say(f"nothing to do: {champion.name} version {champion.number} is champion already, with the same weights")
        return
    judgement = judge_versions(client, challenger, champion, data, placement)
    verdict = judgement.verdict
    if verdict.decision == "promoted":
        tracking.set_alias(client, challenger, tracking.CHAMPION)
    tracking.set_version_tags(
        client,
        challenger,
        {
            "gate.decision": verdict.decision,
            "gate.sentence": verdict.sentence,
            TEST_SET_TAG: judgement.test_set_sha256,
        },
    )
    body = {
        **asdict(verdict),
        "version": challenger.number,
        "weights_sha256": challenger.weights_sha256,
        "against": champion.number if champion else None,
        "test_set_sha256": judgement.test_set_sha256,
        "versions_judged_before": judgement.versions_judged_before,
        "training_unknown": judgement.training_unknown,
    }
    verdict_path = report.with_name("verdict.json")
    write_json(verdict_path, body)
    say(f"{challenger.name} version {challenger.number} {verdict.sentence}")
    say(f"versions judged on these test images before: {judgement.versions_judged_before}")
    if report.exists():
        say(f"report with the verdict: {add_promotion(report, verdict, challenger, champion)}")
