from shared.vocabulary import infotext
from shared.vocabulary.samplers import Sampler, Schedule
from tests.support.factories import params


def test_the_text_reads_as_other_tools_expect() -> None:
    text = infotext.encode(params(negative_prompt="blurry", seed=41, num_images=2), 1)
    assert text == (
        "a red circle on a blue background\nNegative prompt: blurry\n"
        "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 42, Size: 64x64, Model: farm-demo, "
        "Version: v1.10.1"
    )


def test_no_negative_prompt_no_line() -> None:
    text = infotext.encode(params(sampler=Sampler.EULER_A, schedule=Schedule.UNIFORM), 0)
    assert text.count("\n") == 1
    assert "Sampler: Euler a, Schedule type: Automatic" in text
