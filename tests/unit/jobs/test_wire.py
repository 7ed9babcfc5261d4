from shared.jobs.wire import EXAMPLE, Job


def test_the_documented_example_is_a_job() -> None:
    assert Job.model_validate(EXAMPLE).model_dump(mode="json").keys() == EXAMPLE.keys()
