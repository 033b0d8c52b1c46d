"""The admin: the list of abort requests, and an action that aborts tasks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from django.apps import apps
from django.contrib import admin
from django.contrib.admin import EmptyFieldListFilter
from django.http import HttpRequest

from aioabort.django.actions import abort_selected_tasks, has_abort_permission
from aioabort.django.models import AbortRequest
from aioabort.models import Outcome

# To type checkers alone, ModelAdmin is generic.
if TYPE_CHECKING:
    _RequestAdmin = admin.ModelAdmin[AbortRequest]
else:
    _RequestAdmin = admin.ModelAdmin

_PENDING = "pending"


class OutcomeFilter(admin.SimpleListFilter):
    """By how the task ended; pending, if it did not end yet."""

    title: Any = "outcome"
    parameter_name: Any = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        """Return the choices, without a query."""
        del request, model_admin
        return [(name, name) for name in (_PENDING, *get_args(Outcome))]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        """Return the abort requests with the chosen outcome."""
        del request
        match self.value():
            case None:
                return queryset
            case "pending":
                return queryset.filter(outcome__isnull=True)
            case outcome:
                return queryset.filter(outcome=outcome)


@admin.register(AbortRequest)
class AbortRequestAdmin(_RequestAdmin):
    """Who asked which task to stop, why and when, and how the task ended."""

    list_display: Any = (
        *("task_id", "requested_by", "reason", "requested_at"),
        *("seen_at", "seen_by", "kill_at", "state"),
    )
    list_filter: ClassVar[Any] = (
        OutcomeFilter,
        ("seen_at", EmptyFieldListFilter),
        "requested_at",
    )
    search_fields: ClassVar[Any] = ("task_id", "requested_by", "reason")
    ordering: ClassVar[Any] = ("-requested_at",)
    show_full_result_count = False
    actions: Any = (abort_selected_tasks,)
    has_abort_permission = has_abort_permission

    @admin.display(description="outcome", ordering="outcome")
    def state(self, abort_request: Any) -> str:
        """Return the outcome, or that there is none yet."""
        outcome: str | None = abort_request.outcome
        return outcome or _PENDING

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only aioabort writes abort requests, because it also notifies workers."""
        del request
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only aioabort writes abort requests."""
        del request, obj
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only ``aioabort cleanup`` deletes abort requests."""
        del request, obj
        return False


if apps.is_installed("django_celery_results"):
    # The class, because projects register subclasses of it, before this or afterwards.
    results_admin: Any = import_module("django_celery_results.admin").TaskResultAdmin
    results_admin.actions = [*results_admin.actions, abort_selected_tasks]
    results_admin.has_abort_permission = has_abort_permission
