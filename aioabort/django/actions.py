"""The admin's action that aborts the selected tasks."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from celery.exceptions import ImproperlyConfigured
from django.contrib import messages
from django.contrib.admin import ModelAdmin, action, helpers
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from aioabort import AioabortError, sync
from aioabort.django.forms import AbortForm
from aioabort.models import AbortReceipt

PERMISSION: Final = "aioabort.abort_task"

#: Tasks whose ids the confirmation page shows; of more, it shows the number.
MOST_SHOWN: Final = 100

_ANSWERS: Final[dict[str, str]] = {
    "requested": "asked to stop",
    "requested_before": "asked to stop before",
    "finished": "had ended",
}


def has_abort_permission(_model_admin: Any, request: HttpRequest) -> bool:
    """Whether the user may abort tasks; the admin asks this for the action."""
    user: Any = request.user
    return bool(user.has_perm(PERMISSION))


@action(permissions=["abort"], description="Abort selected tasks")
def abort_selected_tasks(
    model_admin: "ModelAdmin[Any]", request: HttpRequest, queryset: Any
) -> HttpResponse | None:
    """Show a page that asks for confirmation, and abort the tasks when it comes back.

    Exactly those tasks are aborted that the page has shown, whatever the filters of the
    list select by then. For any ModelAdmin whose model has a ``task_id``.
    """
    if "confirmed" not in request.POST:
        task_ids = list(queryset.values_list("task_id", flat=True))
        form = AbortForm(initial={"task_ids": json.dumps(task_ids)})
        return _confirmation(model_admin, request, form, task_ids)
    form = AbortForm(request.POST)
    if not form.is_valid():
        task_ids = form.cleaned_data.get("task_ids", [])
        return _confirmation(model_admin, request, form, task_ids)
    # The user may not see every task.
    allowed = model_admin.get_queryset(request).filter(
        task_id__in=form.cleaned_data["task_ids"]
    )
    _abort(model_admin, request, form, allowed.values_list("task_id", flat=True))
    return None


def _abort(
    model_admin: "ModelAdmin[Any]",
    request: HttpRequest,
    form: AbortForm,
    task_ids: Iterable[str],
) -> None:
    user: Any = request.user
    try:
        receipts = sync.abort(
            list(task_ids),
            reason=form.cleaned_data["reason"],
            requested_by=user.get_username(),
            grace=form.cleaned_data["grace"],
        )
    except (AioabortError, ImproperlyConfigured) as error:
        text, level = f"No task was aborted: {error}", messages.ERROR
    else:
        text, level = _summary(receipts), messages.SUCCESS
    model_admin.message_user(request, text, level)


def _summary(receipts: Iterable[AbortReceipt]) -> str:
    numbers: Counter[str] = Counter(receipt.answer for receipt in receipts)
    parts = [
        f"{numbers[answer]} {text}"
        for answer, text in _ANSWERS.items()
        if numbers[answer]
    ]
    return f"Tasks: {', '.join(parts) or 'none'}."


def _confirmation(
    model_admin: "ModelAdmin[Any]",
    request: HttpRequest,
    form: AbortForm,
    task_ids: list[str],
) -> TemplateResponse:
    site: Any = model_admin.admin_site
    request.current_app = site.name
    return TemplateResponse(
        request,
        "admin/aioabort/abort_confirmation.html",
        {
            **site.each_context(request),
            "title": "Abort tasks",
            "subtitle": None,
            "opts": model_admin.model._meta,
            "media": model_admin.media,
            "form": form,
            "number": len(task_ids),
            "task_ids": task_ids[:MOST_SHOWN],
            "hidden": len(task_ids) - MOST_SHOWN,
            "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
            "action": abort_selected_tasks.__name__,
        },
    )
