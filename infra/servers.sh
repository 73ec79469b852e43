#!/usr/bin/env bash
# The servers of one machine as plain processes on 127.0.0.1: PostgreSQL, and on it a Prefect and an MLflow server.
#
#   infra/servers.sh up       starts what does not run, waits until it answers, prints the two export lines
#   infra/servers.sh status   a line for each; exit code 1 when one is down
#   infra/servers.sh down     stops them; their data stays
#
# Only the exports go to stdout: eval "$(infra/servers.sh up)" points this shell at the servers. Settings are variables:
#
#   MAGIC141_SERVERS                            folder of data, logs and password      runs/servers
#   POSTGRES_PORT, PREFECT_PORT, MLFLOW_PORT                                           54141, 4200, 5000
#   MAGIC141_PYTHON                             has prefect, mlflow and psycopg2       .venv/bin/python, or python3
#   POSTGRES_OWNER                              runs PostgreSQL where this is root     postgres, or nobody
#   START_SECONDS                               how long a server may take to answer   180
set -euo pipefail

FOLDER=$(realpath -m "${MAGIC141_SERVERS:-"$(dirname "$0")/../runs/servers"}")
export MAGIC141_SERVERS=$FOLDER
cd "$(dirname "$0")/.."
DATA=$FOLDER/postgres
POSTGRES_PORT=${POSTGRES_PORT:-54141} PREFECT_PORT=${PREFECT_PORT:-4200} MLFLOW_PORT=${MLFLOW_PORT:-5000}
START_SECONDS=${START_SECONDS:-180} STOP_SECONDS=30
STARTED=()

say() { echo "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

port_of() {
    local variable=${1^^}_PORT
    echo "${!variable}"
}

url_of() {
    case $1 in
        postgres) echo "postgresql://127.0.0.1:$POSTGRES_PORT" ;;
        prefect) echo "http://127.0.0.1:$PREFECT_PORT/api" ;;
        mlflow) echo "http://127.0.0.1:$MLFLOW_PORT" ;;
    esac
}

# --- what is needed ---------------------------------------------------------------------------------------------------

find_python() {
    PYTHON=${MAGIC141_PYTHON:-$PWD/.venv/bin/python}
    test -x "$PYTHON" || PYTHON=$(command -v python3) || fail "no Python; run make setup, or set MAGIC141_PYTHON"
    local module
    for module in prefect mlflow asyncpg psycopg2; do
        "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" ||
            fail "$PYTHON has no $module; install this package with its extra servers there (uv pip install -c constraints.txt -e '.[servers]'), or set MAGIC141_PYTHON"
    done
}

# Debian keeps PostgreSQL's programs off PATH, in a folder for each version.
find_postgres() {
    local folder
    for folder in "$(pg_config --bindir 2>/dev/null || true)" $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) \
        "$(dirname "$(readlink -f "$(command -v initdb || echo /)")")"; do
        if test -x "$folder/initdb" && test -x "$folder/postgres"; then
            BIN=$folder
            return
        fi
    done
    fail "postgres: not installed; on Debian: apt-get install postgresql"
}

# PostgreSQL refuses to run as root.
find_owner() {
    OWNER=$(id -un) AS_OWNER=()
    if test "$(id -u)" = 0; then
        OWNER=${POSTGRES_OWNER:-$(id -un postgres 2>/dev/null || echo nobody)}
        AS_OWNER=(setpriv --reuid "$OWNER" --regid "$(id -g "$OWNER")" --clear-groups)
    fi
}

# --- the three servers: each `run_` becomes the server --------------------------------------------------------------

password() { cat "$FOLDER/password"; }

sql() {
    PGPASSWORD=$(password) PGCONNECT_TIMEOUT=5 \
        "$BIN/psql" -h 127.0.0.1 -p "$POSTGRES_PORT" -U magic141 -d postgres -XAtqc "$1"
}

make_data_folder() {
    if test -f "$DATA/PG_VERSION"; then
        test -s "$FOLDER/password" || fail "postgres: $FOLDER/password is gone; bring it back, or remove $DATA as well"
        return
    fi
    rm -rf "$DATA" && mkdir -m 700 "$DATA"
    (umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$FOLDER/password")
    test "$(id -u)" != 0 || chown "$OWNER" "$DATA" "$FOLDER/password"
    "${AS_OWNER[@]}" test -r "$FOLDER/password" ||
        fail "postgres: user $OWNER cannot reach $FOLDER; set MAGIC141_SERVERS to a folder that it can"
    "${AS_OWNER[@]}" "$BIN/initdb" -D "$DATA" -U magic141 --pwfile="$FOLDER/password" --auth=scram-sha-256 \
        --encoding=UTF8 --no-locale >"$FOLDER/postgres.log" 2>&1 || {
        rm -rf "$DATA"
        fail "postgres: its data folder cannot be made; its log: $FOLDER/postgres.log"
    }
}

run_postgres() {
    local socket=$DATA
    test ${#DATA} -lt 80 || socket= # the path of a Unix socket may have 107 characters
    cd "$DATA"
    exec "${AS_OWNER[@]}" "$BIN/postgres" -D "$DATA" -p "$POSTGRES_PORT" -k "$socket" \
        -c listen_addresses=127.0.0.1 -c max_connections=200
}

make_databases() {
    local name
    for name in prefect mlflow; do
        test "$(sql "SELECT 1 FROM pg_database WHERE datname = '$name'")" = 1 || sql "CREATE DATABASE $name"
    done
}

# Passwords are in the environment of a process, never among its arguments, which every user can read.
database() { echo "$1://magic141:$(password)@127.0.0.1:$POSTGRES_PORT/$2"; }

run_prefect() {
    unset PREFECT_API_URL PREFECT_API_AUTH_STRING
    export PREFECT_HOME=$FOLDER/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
    # a place in a concurrency limit is held by a lease: in memory, a restart would lose it and end the run that has it
    export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
    PREFECT_SERVER_DATABASE_CONNECTION_URL=$(database postgresql+asyncpg prefect)
    export PREFECT_SERVER_DATABASE_CONNECTION_URL
    exec "$PYTHON" -m prefect server start --host 127.0.0.1 --port "$PREFECT_PORT"
}

run_mlflow() {
    unset MLFLOW_TRACKING_URI
    # its job runner is for judging language models: eight processes, 1.3 GB
    export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
    MLFLOW_BACKEND_STORE_URI=$(database postgresql+psycopg2 mlflow)
    export MLFLOW_BACKEND_STORE_URI
    exec "$PYTHON" -m mlflow server --host 127.0.0.1 --port "$MLFLOW_PORT" --workers 1 \
        --artifacts-destination "$FOLDER/artifacts"
}

# --- processes --------------------------------------------------------------------------------------------------------

# When a process began: clock ticks after the start of the machine, and which start, as neither another time zone nor a
# clock that is set changes them. The number is the 20th after the name, which may hold spaces and brackets.
started_at() {
    local stat fields
    if { stat=$(<"/proc/$1/stat"); } 2>/dev/null; then
        read -ra fields <<<"${stat##*) }"
        echo "${fields[19]} $(</proc/sys/kernel/random/boot_id)"
    else
        TZ=UTC LC_ALL=C ps -o lstart= -p "$1" 2>/dev/null
    fi
}

# The file holds number and start of the process, since numbers are used again.
pid_of() {
    local pid began
    { read -r pid && read -r began; } 2>/dev/null <"$FOLDER/$1.pid" || return 1
    test "$(started_at "$pid")" = "$began" && echo "$pid"
}

answers() {
    if test "$1" = postgres; then
        sql "SELECT 1" >/dev/null 2>&1
        return
    fi
    local path=/health line=
    test "$1" = mlflow || path=/api/health
    (
        exec 3<>"/dev/tcp/127.0.0.1/$(port_of "$1")"
        printf 'GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$path" >&3
        read -r -t 5 line <&3
        [[ $line == *" 200 "* ]]
    ) 2>/dev/null
}

is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
    local name=$1 log=$FOLDER/$1.log pid deadline=$((SECONDS + START_SECONDS))
    if pid_of "$name" >/dev/null; then # on a busy machine it may be slow: never stopped for that
        until answers "$name"; do
            pid_of "$name" >/dev/null || break
            test $SECONDS -lt $deadline ||
                fail "$name: runs, but gave no answer in $START_SECONDS s; its log: $log; to end it: infra/servers.sh down"
            sleep 0.3
        done
        if pid_of "$name" >/dev/null; then
            say "$name: runs already"
            return
        fi
    fi
    stop "$name"
    ! is_taken "$(port_of "$name")" ||
        fail "$name: port $(port_of "$name") is taken by another process; set ${name^^}_PORT to a free one"
    STARTED=("$name" "${STARTED[@]}")
    # in a session of its own: Ctrl-C here is not meant for it, and `stop` reaches all of its processes
    setsid "$BASH" infra/servers.sh run "$name" </dev/null >"$log" 2>&1 9>&- &
    pid=$!
    printf '%s\n%s\n' "$pid" "$(started_at "$pid")" >"$FOLDER/$name.pid"
    until answers "$name"; do
        pid_of "$name" >/dev/null || fail "$name: ended while it started; its log: $log"
        test $SECONDS -lt $deadline || fail "$name: no answer within $START_SECONDS s; its log: $log"
        sleep 0.3
    done
    say "$name: $(url_of "$name")"
}

# Of a group of processes, whether any is more than a zombie that nobody collects, as where a container has no init.
lives() { ps -eo pgid=,stat= | awk -v group="$1" '$1 == group && $2 !~ /^Z/ { found = 1 } END { exit !found }'; }

stop() {
    local pid deadline=$((SECONDS + STOP_SECONDS))
    if pid=$(pid_of "$1"); then
        case $1 in
            postgres) kill -INT "$pid" ;; # ends sessions, then itself; TERM would wait for them
            *) kill -TERM -- "-$pid" ;;
        esac
        while lives "$pid"; do
            test $SECONDS -lt $deadline || kill -KILL -- "-$pid" 2>/dev/null || true
            test $SECONDS -lt $((deadline + STOP_SECONDS)) || fail "$1: process $pid does not end"
            sleep 0.1
        done
        say "$1: stopped"
    fi
    rm -f "$FOLDER/$1.pid"
}

stop_what_was_started() {
    local code=$? name
    if test $code != 0; then
        for name in "${STARTED[@]}"; do stop "$name"; done
    fi
    exit $code
}

# --- commands ---------------------------------------------------------------------------------------------------------

up() {
    find_python && find_postgres && find_owner
    mkdir -p "$FOLDER"
    exec 9>"$FOLDER/lock"
    flock -w "$START_SECONDS" 9 || fail "another infra/servers.sh up works on $FOLDER"
    trap stop_what_was_started EXIT
    make_data_folder
    start postgres
    make_databases
    start prefect
    start mlflow
    echo "export PREFECT_API_URL=$(url_of prefect)"
    echo "export MLFLOW_TRACKING_URI=$(url_of mlflow)"
}

status() {
    find_postgres
    local name pid down=0
    for name in postgres prefect mlflow; do
        if pid=$(pid_of "$name") && answers "$name"; then
            printf '%-9s up    %-32s process %s, log %s\n' "$name" "$(url_of "$name")" "$pid" "$FOLDER/$name.log"
        else
            printf '%-9s down\n' "$name"
            down=1
        fi
    done
    return $down
}

down() {
    local name
    for name in mlflow prefect postgres; do stop "$name"; done
}

case ${1:-} in
    up | status | down)
        command -v ps >/dev/null || fail "no ps, which tells processes that live; on Debian: apt-get install procps"
        "$1"
        ;;
    run)
        find_python && find_postgres && find_owner
        "run_$2"
        ;;
    *)
        sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0"
        exit 2
        ;;
esac
