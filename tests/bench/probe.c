/* 200 messages a second at QoS 0 from a client to itself. Latency counts from the moment when a message was due, so a broker
   that does nothing else for a second shows as 200 messages that were late, not as one. */
#include "probe.h"

#include <string.h>

#include "client.h"
#include "load.h"
#include "wire.h"

#define EVERY_NS 5000000u
#define AT_ONCE 400        /* after a stall of the generator itself, no more than this is caught up with */
#define AGAIN_NS 250000000u
#define PATIENCE_NS 5000000000u

static struct client probe;
static struct histogram latency;
static uint64_t next_due, sent, received;
static uint64_t again; /* when to knock once more, after a refusal */
static bool sending;

static void on_ready(struct client *c) {
    (void)c;
    sending = true;
    next_due = now_ns();
}

static void on_packet(struct client *c, const uint8_t *in, size_t header, size_t total) {
    (void)header;
    uint64_t due;
    if (in[0] >> 4 != PUBLISH || c != &probe) return;
    memcpy(&due, in + total - 8, 8);
    record(&latency, heard > due ? heard - due : 0);
    received++;
}

static void on_gone(struct client *c) {
    (void)c;
    sending = false;
}

static void on_failed(struct client *c, unsigned code) {
    (void)c;
    (void)code;
    again = now_ns() + AGAIN_NS;
}

static const struct events events = {.packet = on_packet, .ready = on_ready, .gone = on_gone, .failed = on_failed};

static void send_one(uint64_t due) {
    uint8_t *out = room_for(&probe, 256), *at = out;
    size_t topic = strlen(probe.topic) + 2, properties = opt.version == 5;
    *at++ = PUBLISH << 4;
    at += put_varint(at, (uint32_t)(topic + properties + 8));
    at += put_string(at, probe.topic);
    if (properties) *at++ = 0;
    memcpy(at, &due, 8);
    probe.out_len += (size_t)(at + 8 - out);
    sent++;
}

void start_probe(void) {
    probe = (struct client){.role = PROBE, .clean = true, .own = &events};
    fill_template(probe.topic, sizeof probe.topic, opt.topic, 0);
    strncat(probe.topic, "-probe", sizeof probe.topic - strlen(probe.topic) - 1);
    start_client(&probe);
}

bool probe_ready(void) { return probe.state == READY; }

int tick_probe(int wait_ms) {
    uint64_t now = now_ns();
    if (again && again <= now) {
        again = 0;
        start_client(&probe);
    }
    if (!sending) return wait_ms;
    if (now > next_due + AT_ONCE * (uint64_t)EVERY_NS) next_due = now;
    if (next_due <= now) {
        for (; next_due <= now; next_due += EVERY_NS) send_one(next_due);
        flush_client(&probe);
    }
    int until = (int)((next_due - now) / 1000000u) + 1;
    return wait_ms < until ? wait_ms : until;
}

void stop_probe(void) {
    static const struct events nothing = {0};
    sending = false;
    again = 0;
    uint64_t end = now_ns() + PATIENCE_NS;
    while (probe.state == READY && received < sent && now_ns() < end) turn(&nothing, 10);
    stop_client(&probe);
}

void print_probe(void) {
    printf("\"others_sent\": %lu, \"others_lost\": %lu, ", sent, sent > received ? sent - received : 0);
    print_histogram("others_us", &latency);
}
