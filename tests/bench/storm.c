/* A fleet whose broker goes and comes back: everybody reconnects at once, is refused, waits, tries again. */
#include <stdlib.h>
#include <unistd.h>

#include "client.h"
#include "load.h"
#include "probe.h"

#define AWAY_NS 200000000u    /* between two tries while nobody listens */
#define FIRST_NS 250000000u   /* after a refusal; twice as long after each further one */
#define LONGEST_NS 4000000000u
#define PATIENCE_NS 120000000000u

static struct client *clients;
static struct { uint64_t at; uint64_t wait; } *again; /* when each tries again; 0: it is under way */
static struct histogram latency;
static uint64_t back; /* when the first of them found the broker again */
static long ready, gone, refused, dropped;

static void try_later(struct client *c, uint64_t wait) {
    /* a share of the wait that differs from client to client, so that they do not come in steps */
    again[c->index].at = now_ns() + wait / 2 + wait * (uint64_t)(c->index * 7919 % 1000) / 1000;
}

static void on_ready(struct client *c) {
    (void)c;
    if (!back) back = now_ns();
    ready++;
    record(&latency, now_ns() - back);
}

static void on_gone(struct client *c) {
    ready--;
    gone++;
    again[c->index].wait = FIRST_NS;
    try_later(c, AWAY_NS);
}

static void on_failed(struct client *c, unsigned code) {
    if (!back && !code) {
        try_later(c, AWAY_NS);
        return;
    }
    if (!back) back = now_ns();
    if (code) refused++;
    else dropped++;
    try_later(c, again[c->index].wait);
    if (again[c->index].wait < LONGEST_NS) again[c->index].wait *= 2;
}

/* Says "ready" when all are connected; then the broker is to be started anew, and what follows is measured. */
int run_storm(void) {
    const struct events events = {.ready = on_ready, .gone = on_gone, .failed = on_failed};
    clients = calloc((size_t)opt.connections, sizeof *clients);
    again = calloc((size_t)opt.connections, sizeof *again);
    if (!clients || !again) give_up("out of memory");
    for (long i = 0; i < opt.connections; i++) clients[i] = (struct client){.role = HOLDER, .clean = true, .index = i};
    connect_all(clients, opt.connections);
    ready = opt.connections;
    printf("ready\n");
    fflush(stdout);
    bool probing = false;
    uint64_t begun = now_ns(), lost = 0;
    while (gone < opt.connections || ready < opt.connections) {
        uint64_t now = now_ns();
        if (now - begun > PATIENCE_NS) give_up("only %ld of %ld clients came back", ready, opt.connections);
        if (gone && !lost) lost = now;
        if (back && !probing) probing = true, start_probe();
        for (long i = 0; gone && i < opt.connections; i++) {
            if (!again[i].at || again[i].at > now) continue;
            again[i].at = 0;
            start_client(&clients[i]);
        }
        turn(&events, 2);
    }
    double seconds = (double)(now_ns() - back) / 1e9;
    if (probing) stop_probe();
    printf(
        "{\"scenario\": \"storm\", \"connections\": %ld, \"expected\": %ld, \"delivered\": %ld, \"lost\": 0, "
        "\"away_seconds\": %.3f, \"seconds\": %.4f, \"rate\": %.1f, \"refused\": %ld, \"dropped\": %ld, ",
        opt.connections, opt.connections, ready, (double)(back - lost) / 1e9, seconds, (double)opt.connections / seconds,
        refused, dropped
    );
    print_histogram("latency_us", &latency);
    print_probe();
    printf("\"closed\": %ld}\n", gone - opt.connections);
    return 0;
}
