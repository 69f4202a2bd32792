"""What schemathesis must know of us that OpenAPI cannot say. Loaded by it through SCHEMATHESIS_HOOKS."""

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    # JSON Schema calls 9.0 an integer; whoever reads JSON into types does not.
    case.body = _whole(case.body)
    # The output of an agent that waits has no end: following it is not for a client with a timeout.
    if case.operation.path.endswith("/logs") and case.query:
        case.query.pop("follow", None)


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {name: _whole(each) for name, each in value.items()}
        case list():
            return [_whole(each) for each in value]
        case _:
            return value
