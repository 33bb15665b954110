/* Connections: how many a second, and what an idle one costs. */
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "client.h"
#include "load.h"

static struct histogram latency;
static struct client **done;
static long done_count;

static void on_ready(struct client *c) {
    record(&latency, now_ns() - c->opened);
    done[done_count++] = c;
}

/* `parallel` clients connect, wait for CONNACK, disconnect, and begin again. Each keeps one of `connections` numbers. */
int run_connect(void) {
    if (opt.seconds <= 0) give_up("connect needs seconds=T");
    long users = opt.connections > opt.parallel ? opt.connections : opt.parallel, next = 0;
    struct client *clients = calloc((size_t)opt.parallel, sizeof *clients);
    done = calloc((size_t)opt.parallel, sizeof *done);
    if (!clients || !done) give_up("out of memory");
    const struct events events = {.ready = on_ready};
    double broker_cpu = opt.pid ? cpu_seconds(opt.pid) : 0, self_cpu = cpu_seconds(0);
    uint64_t started = now_ns(), counted = started + (uint64_t)(opt.warmup * 1e9);
    uint64_t end = counted + (uint64_t)(opt.seconds * 1e9), now = started;
    bool counting = opt.warmup <= 0;
    for (long i = 0; i < opt.parallel; i++) {
        clients[i] = (struct client){.role = HOLDER, .clean = true, .index = next++ % users};
        start_client(&clients[i]);
    }
    while ((now = now_ns()) < end) {
        if (!counting && now >= counted) {
            counting = true;
            latency = (struct histogram){0};
            broker_cpu = opt.pid ? cpu_seconds(opt.pid) : 0;
            self_cpu = cpu_seconds(0);
        }
        turn(&events, 100);
        for (long i = 0; i < done_count; i++) {
            stop_client(done[i]);
            done[i]->index = next++ % users;
            start_client(done[i]);
        }
        done_count = 0;
    }
    double seconds = (double)(now - counted) / 1e9;
    broker_cpu = opt.pid ? cpu_seconds(opt.pid) - broker_cpu : 0;
    self_cpu = cpu_seconds(0) - self_cpu;
    printf(
        "{\"scenario\": \"connect\", \"parallel\": %ld, \"version\": %ld, \"connections\": %lu, \"seconds\": %.4f, "
        "\"rate\": %.1f, ",
        opt.parallel, opt.version, latency.count, seconds, (double)latency.count / seconds
    );
    print_histogram("latency_us", &latency);
    if (opt.pid)
        printf(
            "\"broker_cpu_share\": %.3f, \"cpu_us_per_message\": %.3f, \"rss_kib\": %ld, ", broker_cpu / seconds,
            latency.count ? broker_cpu * 1e6 / (double)latency.count : 0.0, memory_kib(opt.pid, "VmRSS")
        );
    printf("\"self_cpu_share\": %.3f}\n", self_cpu / seconds);
    return 0;
}

static void on_gone(struct client *c) { give_up("the broker closed idle connection %ld", c->index); }

/* Says how the broker's memory grew and holds the connections until standard input ends. */
int run_idle(void) {
    struct client *clients = calloc((size_t)opt.connections, sizeof *clients);
    if (!clients) give_up("out of memory");
    for (long i = 0; i < opt.connections; i++) {
        clients[i] = (struct client){.role = HOLDER, .clean = true, .index = i};
        fill_template(clients[i].topic, sizeof clients[i].topic, opt.filter, opt.users ? i % opt.users : i);
    }
    long before = opt.pid ? memory_kib(opt.pid, "VmRSS") : 0;
    uint64_t started = now_ns();
    connect_all(clients, opt.connections);
    double seconds = (double)(now_ns() - started) / 1e9;
    const struct events events = {.gone = on_gone};
    for (int i = 0; i < 100; i++) turn(&events, 10); /* a second of quiet, so that work put off is done */
    long after = opt.pid ? memory_kib(opt.pid, "VmRSS") : 0;
    printf(
        "{\"scenario\": \"idle\", \"connections\": %ld, \"subscribed\": %ld, \"version\": %ld, \"connect_rate\": %.1f, "
        "\"rss_before_kib\": %ld, \"rss_kib\": %ld, \"bytes_per_connection\": %.1f}\n",
        opt.connections, opt.subscribe, opt.version, (double)opt.connections / seconds, before, after,
        (double)(after - before) * 1024 / (double)opt.connections
    );
    fflush(stdout);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte;
    for (;;) {
        turn(&events, 50);
        if (poll(&input, 1, 0) > 0 && read(0, &byte, 1) <= 0) break;
    }
    for (long i = 0; i < opt.connections; i++) stop_client(&clients[i]);
    return 0;
}
