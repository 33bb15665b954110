/* What a broker keeps: very many retained messages, subscriptions and sessions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "load.h"
#include "probe.h"
#include "wire.h"

#define FILTERS 100 /* in one SUBSCRIBE */
#define MARK_NS 1000000000u

static struct client *clients;
static struct histogram latency;
static uint64_t *seen, delivered, duplicates, corrupt, last_delivery;
static long finished;

static double seconds_since(uint64_t begun) { return (double)(now_ns() - begun) / 1e9; }

/* Clients that go through the same handshake; topics are made of `topic` and each one's number. */
static struct client *make(long count, enum role role, const char *topic) {
    struct client *made = calloc((size_t)count + 1, sizeof *made);
    if (!made) give_up("out of memory");
    for (long i = 0; i < count; i++) {
        made[i] = (struct client){.role = role, .clean = true, .index = i};
        fill_template(made[i].topic, sizeof made[i].topic, topic, i);
    }
    return made;
}

static void on_gone(struct client *c) { give_up("the broker closed connection %ld", c->index); }

/* A PUBLISH on `topic`/`rest` with a number and the time as its payload. */
static void append(struct client *c, const char *topic, unsigned flags, uint64_t number) {
    uint64_t stamp = now_ns();
    uint8_t *out = room_for(c, strlen(topic) + 64), *at = out;
    size_t properties = opt.version == 5, qos = flags >> 1 & 3;
    *at++ = (uint8_t)(PUBLISH << 4 | flags);
    at += put_varint(at, (uint32_t)(2 + strlen(topic) + (qos ? 2 : 0) + properties + 16));
    at += put_string(at, topic);
    if (qos) at += put_u16(at, c->last_id = c->last_id % 65535 + 1);
    if (properties) *at++ = 0;
    memcpy(at, &number, 8);
    memcpy(at + 8, &stamp, 8);
    c->out_len += (size_t)(at + 16 - out);
}

/* The number in a PUBLISH that came, `limit` when it is none below that; acknowledges it. */
static uint64_t take(struct client *c, const uint8_t *in, size_t header, size_t total, uint64_t limit) {
    uint64_t number, stamp;
    if ((in[0] >> 1 & 3) == 1)
        c->out_len += build_ack(room_for(c, 4), PUBACK, get_u16(in + header + 2 + get_u16(in + header)));
    last_delivery = heard;
    memcpy(&number, in + total - 16, 8);
    memcpy(&stamp, in + total - 8, 8);
    if (total - header < 18 || number >= limit) {
        corrupt++;
        return limit;
    }
    if (seen[number >> 6] >> (number & 63) & 1) {
        duplicates++;
        return limit;
    }
    seen[number >> 6] |= 1ull << (number & 63);
    delivered++;
    record(&latency, heard > stamp ? heard - stamp : 0);
    return number;
}

static void print_counts(uint64_t expected) {
    printf(
        "\"expected\": %lu, \"delivered\": %lu, \"lost\": %lu, \"duplicates\": %lu, \"corrupt\": %lu, ", expected, delivered,
        expected - delivered, duplicates, corrupt
    );
}

/* Until all have come, or none has for `idle` seconds. */
static void wait_for(uint64_t expected, const struct events *events) {
    uint64_t since = last_delivery = now_ns(), had = delivered;
    while (delivered < expected && now_ns() - since < (uint64_t)(opt.idle * 1e9)) {
        turn(events, 10);
        if (delivered != had) had = delivered, since = now_ns();
    }
}

/* -- retained messages --------------------------------------------------------------------------------------------- */

static uint64_t suback;

static void retained_topic(char *out, size_t room, const struct client *c, uint32_t number) {
    if (snprintf(out, room, "%s/%u", c->topic, number) >= (int)room) give_up("%s is too long", c->topic);
}

static void store_some(struct client *c) {
    char topic[160];
    while (c->inflight < (uint32_t)opt.window && c->inflight < c->receive_maximum && c->sent < (uint32_t)opt.messages) {
        retained_topic(topic, sizeof topic, c, c->sent);
        append(c, topic, 1 << 1 | 1, (uint64_t)(c->index * opt.messages) + c->sent);
        c->inflight++;
        c->sent++;
    }
    flush_client(c);
}

static void on_stored(struct client *c, const uint8_t *in, size_t header, size_t total) {
    if (in[0] >> 4 != PUBACK) return;
    if (total > header + 2 && in[header + 2] >= 0x80) give_up("a retained message was refused: 0x%02x", in[header + 2]);
    c->inflight--;
    if (++c->acked == (uint32_t)opt.messages) finished++;
    else if (c->inflight < (uint32_t)opt.window / 2 + 1) store_some(c);
}

static double store_all(void) {
    static const struct events events = {.packet = on_stored, .gone = on_gone};
    struct client *publishers = make(opt.publishers, PUBLISHER, opt.topic);
    connect_all(publishers, opt.publishers);
    uint64_t begun = now_ns();
    finished = 0;
    for (long i = 0; i < opt.publishers; i++) store_some(&publishers[i]);
    while (finished < opt.publishers) turn(&events, 100);
    double seconds = seconds_since(begun);
    for (long i = 0; i < opt.publishers; i++) stop_client(&publishers[i]);
    return seconds;
}

static void on_retained(struct client *c, const uint8_t *in, size_t header, size_t total) {
    if (in[0] >> 4 == SUBACK) {
        suback = heard;
        if (in[total - 1] > 2) give_up("SUBACK says 0x%02x", in[total - 1]);
    } else if (in[0] >> 4 == PUBLISH) {
        take(c, in, header, total, (uint64_t)(opt.publishers * opt.messages));
    }
}

/* `publishers` times `messages` are stored at QoS 1; then one subscription asks for all of them. */
int run_retained(void) {
    static const struct events events = {.packet = on_retained, .gone = on_gone};
    uint64_t expected = (uint64_t)(opt.publishers * opt.messages);
    seen = calloc(expected / 64 + 1, 8);
    if (!seen || !expected) give_up("retained needs messages=N");
    long before = opt.pid ? memory_kib(opt.pid, "VmRSS") : 0;
    double stored = opt.store ? store_all() : 0;
    long after = opt.pid ? memory_kib(opt.pid, "VmRSS") : 0;
    if (!opt.subscribers) { /* only to have them stored */
        printf("{\"scenario\": \"retained\", \"store_seconds\": %.4f, \"rss_kib\": %ld}\n", stored, after);
        return 0;
    }
    struct client reader = {.role = HOLDER, .clean = true};
    const char *user = opt.user;
    opt.user = opt.sub_user;
    connect_all(&reader, 1);
    opt.user = user;
    start_probe();
    static const struct events nothing = {0};
    while (!probe_ready()) turn(&nothing, 10);
    for (uint64_t begun = now_ns(); now_ns() - begun < MARK_NS / 5;) turn(&nothing, 10);
    double broker_cpu = opt.pid ? cpu_seconds(opt.pid) : 0, self_cpu = cpu_seconds(0);
    uint64_t begun = now_ns();
    reader.out_len += build_subscribe(room_for(&reader, 2048), (int)opt.version, 1, opt.filter, (int)opt.qos);
    flush_client(&reader);
    latency = (struct histogram){0};
    wait_for(expected, &events);
    double took = delivered ? (double)(last_delivery - begun) / 1e9 : 0;
    broker_cpu = opt.pid ? cpu_seconds(opt.pid) - broker_cpu : 0;
    self_cpu = cpu_seconds(0) - self_cpu;
    stop_probe();
    printf("{\"scenario\": \"retained\", \"qos\": %ld, ", opt.qos);
    print_counts(expected);
    printf(
        "\"store_seconds\": %.4f, \"store_rate\": %.1f, \"bytes_per_message\": %.1f, \"seconds\": %.4f, \"rate\": %.1f, "
        "\"suback_ms\": %.3f, ",
        stored, stored > 0 ? (double)expected / stored : 0, (double)(after - before) * 1024 / (double)expected, took,
        took > 0 ? (double)delivered / took : 0, suback > begun ? (double)(suback - begun) / 1e6 : 0
    );
    print_probe();
    print_cost(broker_cpu, self_cpu, took > 0 ? took : 1, delivered);
    return 0;
}

/* -- subscriptions -------------------------------------------------------------------------------------------------- */

/* Every tenth filter ends in a wildcard; `name`: a topic that it matches. */
static void filter_of(char *out, size_t room, const struct client *c, long number, bool name) {
    const char *end = number % 10 ? "" : name ? "/x" : "/+";
    if (snprintf(out, room, "%s/%ld%s", c->topic, number, end) >= (int)room) give_up("%s is too long", c->topic);
}

static void subscribe_some(struct client *c) {
    char filter[160];
    size_t n = 0;
    static uint8_t body[FILTERS * 170];
    n += put_u16(body, c->last_id = c->last_id % 65535 + 1);
    if (opt.version == 5) body[n++] = 0;
    for (int i = 0; i < FILTERS && c->sent < (uint32_t)opt.messages; i++) {
        filter_of(filter, sizeof filter, c, c->sent++, false);
        n += put_string(body + n, filter);
        body[n++] = 0;
    }
    uint8_t *out = room_for(c, n + 8), *at = out;
    *at++ = SUBSCRIBE << 4 | 2;
    at += put_varint(at, (uint32_t)n);
    memcpy(at, body, n);
    c->out_len += (size_t)(at + n - out);
    flush_client(c);
}

static void on_subscribed(struct client *c, const uint8_t *in, size_t header, size_t total) {
    if (in[0] >> 4 != SUBACK) return;
    for (size_t at = header + (opt.version == 5 ? 3 : 2); at < total; at++)
        if (in[at] > 2) give_up("SUBACK says 0x%02x", in[at]);
    if (c->sent < (uint32_t)opt.messages) subscribe_some(c);
    else finished++;
}

static void on_match(struct client *c, const uint8_t *in, size_t header, size_t total) {
    uint64_t all = (uint64_t)(opt.connections * opt.messages), number;
    char topic[160];
    if (in[0] >> 4 != PUBLISH) return;
    number = take(c, in, header, total, all);
    if (number >= all) return;
    filter_of(topic, sizeof topic, c, (long)(number % (uint64_t)opt.messages), true);
    if ((long)(number / (uint64_t)opt.messages) != c->index || get_u16(in + header) != strlen(topic) ||
        memcmp(in + header + 2, topic, strlen(topic)))
        corrupt++;
}

/* `connections` have `messages` subscriptions each; then as many messages as `burst` says, each matched by one of them. */
int run_subscriptions(void) {
    static const struct events inserting = {.packet = on_subscribed, .gone = on_gone};
    static const struct events matching = {.packet = on_match, .gone = on_gone};
    uint64_t all = (uint64_t)(opt.connections * opt.messages), expected = (uint64_t)opt.burst, sent = 0;
    if (!all || !expected || expected > all) give_up("subscriptions needs messages=N and burst=M, not more than there are");
    seen = calloc(all / 64 + 1, 8);
    clients = make(opt.connections, HOLDER, opt.topic);
    struct client *publisher = make(1, PUBLISHER, opt.topic);
    if (!seen) give_up("out of memory");
    connect_all(clients, opt.connections);
    long before = opt.pid ? memory_kib(opt.pid, "VmRSS") : 0;
    double insert_cpu = opt.pid ? cpu_seconds(opt.pid) : 0;
    uint64_t begun = now_ns();
    for (long i = 0; i < opt.connections; i++) subscribe_some(&clients[i]);
    while (finished < opt.connections) turn(&inserting, 100);
    double inserted = seconds_since(begun);
    insert_cpu = opt.pid ? cpu_seconds(opt.pid) - insert_cpu : 0;
    for (begun = now_ns(); now_ns() - begun < MARK_NS;) turn(&inserting, 10);
    long after = opt.pid ? memory_kib(opt.pid, "VmRSS") : 0;
    opt.user = opt.sub_user; /* who may publish everywhere */
    connect_all(publisher, 1);
    start_probe();
    latency = (struct histogram){0};
    double broker_cpu = opt.pid ? cpu_seconds(opt.pid) : 0, self_cpu = cpu_seconds(0);
    begun = last_delivery = now_ns();
    while (sent < expected && now_ns() - last_delivery < (uint64_t)(opt.idle * 1e9)) {
        char topic[160];
        while (sent < expected && sent < delivered + (uint64_t)opt.window && !publisher->blocked) {
            /* a step that shares no factor with how many there are: each once, no two near each other */
            uint64_t number = sent++ * 7368787 % all;
            filter_of(topic, sizeof topic, &clients[number / (uint64_t)opt.messages], (long)(number % (uint64_t)opt.messages), true);
            append(publisher, topic, 0, number);
        }
        flush_client(publisher);
        turn(&matching, 10);
    }
    wait_for(sent, &matching);
    double took = delivered ? (double)(last_delivery - begun) / 1e9 : 0;
    broker_cpu = opt.pid ? cpu_seconds(opt.pid) - broker_cpu : 0;
    self_cpu = cpu_seconds(0) - self_cpu;
    stop_probe();
    printf("{\"scenario\": \"subscriptions\", \"subscriptions\": %lu, ", all);
    print_counts(sent);
    printf(
        "\"insert_seconds\": %.4f, \"insert_rate\": %.1f, \"insert_cpu_us\": %.3f, \"bytes_per_subscription\": %.1f, "
        "\"seconds\": %.4f, \"rate\": %.1f, ",
        inserted, (double)all / inserted, insert_cpu * 1e6 / (double)all, (double)(after - before) * 1024 / (double)all, took,
        took > 0 ? (double)delivered / took : 0
    );
    print_histogram("latency_us", &latency);
    print_probe();
    print_cost(broker_cpu, self_cpu, took > 0 ? took : 1, delivered);
    return 0;
}

/* -- sessions ------------------------------------------------------------------------------------------------------- */

static struct client **done;
static long done_count;

static void on_ready(struct client *c) { done[done_count++] = c; }

/* `connections` sessions, each with one subscription, each left behind by its client. */
int run_sessions(void) {
    static const struct events events = {.ready = on_ready};
    long next = 0, left = 0;
    opt.subscribe = 1;
    clients = make(opt.parallel, HOLDER, opt.topic);
    done = calloc((size_t)opt.parallel, sizeof *done);
    if (!done) give_up("out of memory");
    uint64_t begun = now_ns();
    for (long i = 0; i < opt.parallel; i++) clients[i].clean = false, on_ready(&clients[i]);
    for (bool first = true; left < opt.connections; first = false) {
        if (!first) turn(&events, 100);
        for (long i = 0; i < done_count; i++) {
            struct client *c = done[i];
            if (c->state == READY) left++, stop_client(c);
            if (next == opt.connections) continue;
            c->index = next++;
            fill_template(c->topic, sizeof c->topic, opt.topic, opt.users ? c->index % opt.users : c->index);
            start_client(c);
        }
        done_count = 0;
    }
    double seconds = seconds_since(begun);
    printf("{\"scenario\": \"sessions\", \"sessions\": %ld, \"seconds\": %.4f, \"rate\": %.1f}\n", left, seconds, (double)left / seconds);
    return 0;
}
