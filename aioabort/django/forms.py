"""The form that confirms an abort in the admin."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from django import forms

from aioabort.client.validation import check_grace, check_task_id, check_text
from aioabort.exceptions import InvalidRequest


class TaskIdsField(forms.CharField):
    """The ids that the confirmation page has shown, as JSON."""

    def clean(self, value: Any) -> list[str]:
        """Return the ids."""
        try:
            task_ids: list[str] = json.loads(super().clean(value))
            for task_id in task_ids:
                check_task_id(task_id)
        except (TypeError, ValueError) as error:
            raise forms.ValidationError(f"No list of task ids: {error}") from None
        return task_ids


class AbortForm(forms.Form):
    """Asks why the tasks are aborted, and whether their processes may be killed."""

    task_ids: TaskIdsField = TaskIdsField(widget=forms.HiddenInput)
    reason: forms.CharField = forms.CharField(required=False, empty_value=None)
    grace: forms.FloatField = forms.FloatField(
        required=False,
        help_text="Seconds after which a process that does not stop is killed. "
        "If empty, none is killed.",
    )

    def clean_reason(self) -> str | None:
        """Return the reason; None if the field is empty."""
        reason: str | None = self.cleaned_data["reason"]
        with _as_validation_error():
            check_text("reason", reason)
        return reason

    def clean_grace(self) -> float | None:
        """Return the seconds; None if the field is empty."""
        grace: float | None = self.cleaned_data["grace"]
        with _as_validation_error():
            check_grace(grace)
        return grace


@contextmanager
def _as_validation_error() -> Generator[None]:
    try:
        yield
    except InvalidRequest as error:
        raise forms.ValidationError(str(error)) from None
