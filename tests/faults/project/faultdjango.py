"""Django's settings for workers that store results by the ORM."""

import json
import os

DATABASES = {"default": json.loads(os.environ["AIOABORT_FAULTS_DATABASE"])}
INSTALLED_APPS = ["django_celery_results"]
SECRET_KEY = "a secret of this suite"
USE_TZ = True
