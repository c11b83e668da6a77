import pytest

from serving.errors import ServerError
from serving.settings import Settings, print_settings, worker_environment


def test_settings_are_their_defaults_where_the_environment_says_nothing() -> None:
    assert Settings.from_env({}) == Settings()
    assert Settings.from_env({"STEMWRIGHT_HTTP_PORT": "", "HTTP_PORT": "9"}) == Settings()


def test_every_setting_has_a_variable() -> None:
    environ = {
        "STEMWRIGHT_MODEL": "s3://models/x.mar",
        "STEMWRIGHT_HTTP_HOST": "0.0.0.0",
        "STEMWRIGHT_HTTP_PORT": "0",
        "STEMWRIGHT_MANAGEMENT_PORT": "8081",
        "STEMWRIGHT_METRICS_HOST": "10.0.0.7",
        "STEMWRIGHT_METRICS_PORT": "8082",
        "STEMWRIGHT_MAX_REQUEST_MB": "50",
        "STEMWRIGHT_MAX_DURATION_S": "7200",
        "STEMWRIGHT_MAX_MILLION_SAMPLES": "900",
        "STEMWRIGHT_ALLOWED_URIS": "s3://bucket/songs",
        "STEMWRIGHT_MAX_REFERENCE_MB": "500",
        "STEMWRIGHT_MAX_TEMPORARY_MB": "900",
        "STEMWRIGHT_CORS_ORIGINS": "https://songs.example.com",
        "STEMWRIGHT_WORKERS": "2",
        "STEMWRIGHT_QUEUE_SIZE": "3",
        "STEMWRIGHT_RESPONSE_TIMEOUT_S": "30",
        "STEMWRIGHT_REQUEST_TIMEOUT_S": "900",
        "STEMWRIGHT_GRACE_PERIOD_S": "5",
        "STEMWRIGHT_STARTUP_TIMEOUT_S": "40",
        "STEMWRIGHT_RUN_DIR": "/run",
        "STEMWRIGHT_DEVICE": "cpu",
        "STEMWRIGHT_ENGINE": "torch",
    }
    assert environ.keys() == {f"STEMWRIGHT_{name.upper()}" for name in vars(Settings())}
    settings = Settings.from_env(environ)
    assert (settings.workers, settings.metrics_host, settings.run_dir) == (2, "10.0.0.7", "/run")
    assert worker_environment(settings, {}) == environ, "the worker reads what the parent read"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STEMWRIGHT_HTTP_PORT", "http"),
        ("STEMWRIGHT_HTTP_PORT", "65536"),
        ("STEMWRIGHT_WORKERS", "0"),
        ("STEMWRIGHT_WORKERS", "-1"),
        ("STEMWRIGHT_MAX_REQUEST_MB", "2001"),  # in bytes it must fit Java's int
        ("STEMWRIGHT_MAX_DURATION_S", "1e3"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(ServerError, match=f"{name} is '{value}': set it to a whole number from"):
        Settings.from_env({name: value})


def test_the_port_that_kubernetes_announces_is_not_taken_for_ours() -> None:
    assert (
        Settings.from_env({"STEMWRIGHT_PORT": "tcp://10.0.0.7:8080", "STEMWRIGHT_SERVICE_HOST": "10.0.0.7"})
        == Settings()
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STEMWRIGHT_WORKER", "STEMWRIGHT_WORKERS"),
        ("STEMWRIGHT_HTTP_PROT", "STEMWRIGHT_HTTP_PORT"),
        ("STEMWRIGHT_MAX_REQUEST", "STEMWRIGHT_MAX_REQUEST_MB"),
        ("STEMWRIGHT_ALLOWED_URI", "STEMWRIGHT_ALLOWED_URIS"),
    ],
)
def test_a_misspelt_setting_is_refused(name: str, meant: str) -> None:
    with pytest.raises(ServerError, match=f"there is no setting {name}: did you mean {meant}\\?"):
        Settings.from_env({name: "2"})


def test_other_variables_of_the_name_are_let_be() -> None:
    others = {
        "STEMWRIGHT_API_KEY": "a",
        "STEMWRIGHT_MLFLOW_PUBLIC_URL": "b",
        "STEMWRIGHT_HTTP_PORT_8080_TCP": "tcp://10.0.0.7:1",
    }
    assert (
        Settings.from_env({**others, "STEMWRIGHT_METRICS_SERVICE_HOST": "c", "STEMWRIGHT_HTTP_PORTS": "tcp://d"})
        == Settings()
    )


def test_large_references_may_be_allowed() -> None:
    assert Settings.from_env({"STEMWRIGHT_MAX_REFERENCE_MB": "50000"}).max_reference_mb == 50_000


@pytest.mark.parametrize(
    "origins", ["songs.example.com", "https://a.example.com, https://b.example.com", "https://a.b/page"]
)
def test_origins_that_torchserve_cannot_allow_are_refused(origins: str) -> None:
    with pytest.raises(ServerError, match=r"STEMWRIGHT_CORS_ORIGINS .* set it to one origin"):
        Settings.from_env({"STEMWRIGHT_CORS_ORIGINS": origins})


def test_the_report_holds_what_differs_from_the_default() -> None:
    assert print_settings(Settings(workers=3, queue_size=8), {}) == "STEMWRIGHT_WORKERS=3"
    assert print_settings(Settings(), {}) == "the default settings"


def test_the_report_names_credentials_and_hides_what_they_are() -> None:
    lines = print_settings(
        Settings(workers=3), {"AWS_SECRET_ACCESS_KEY": "hush", "MLFLOW_TRACKING_PASSWORD": "hush", "HOME": "/"}
    )
    assert "STEMWRIGHT_WORKERS=3" in lines.splitlines()
    assert "AWS_SECRET_ACCESS_KEY=***" in lines.splitlines()
    assert "MLFLOW_TRACKING_PASSWORD=***" in lines.splitlines()
    assert "hush" not in lines and "HOME" not in lines


def test_workers_get_no_credentials_and_nothing_that_overrides_their_configuration() -> None:
    environ = {
        "PATH": "/bin",
        "AWS_SESSION_TOKEN": "x",
        "MLFLOW_TRACKING_URI": "x",
        "TS_CONFIG_FILE": "x",
        "PYTHONPATH": "x",
        "HF_TOKEN": "x",
        "db_password": "x",
        "OPENAI_API_KEY": "x",
    }
    environment = worker_environment(Settings(), environ)
    assert environment["PATH"] == "/bin"
    assert not environment.keys() & (environ.keys() - {"PATH"})


def test_workers_get_credentials_of_buckets_only_where_they_may_read_some() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "a", "AWS_ENDPOINT_URL": "b", "MLFLOW_TRACKING_PASSWORD": "c", "API_KEY": "d"}

    def kept(allowed_uris: str) -> set[str]:
        return worker_environment(Settings(allowed_uris=allowed_uris), environ).keys() & environ.keys()

    assert kept("https://host/songs") == set()
    assert kept("https://host/songs, s3://bucket") == {"AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"}
