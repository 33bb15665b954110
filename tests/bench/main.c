/* load: an MQTT load generator over TCP, TLS or WebSocket. `load SCENARIO name=value ...` prints one JSON object.

   pubsub   publishers to subscribers, by count, by time or at a rate, every delivery checked
   offline  fill the queue of an absent persistent session, then drain it
   connect  connect, wait for CONNACK, close, as often as possible
   idle     hold connections open until standard input closes
   storm    hold connections open through a restart of the broker, and come back all at once
   sessions       leave persistent sessions behind, with one subscription each
   subscriptions  very many subscriptions on some connections, then messages that match one of them each
   retained       very many retained messages, then a subscription that all of them match
   reflect  a trivial server that forwards bytes, so that the generator's own ceiling can be measured
*/
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct options opt = {
    .host = "127.0.0.1", .user = "", .password = "", .sub_user = NULL, .sub_password = NULL, .topic = "dev%d/bench",
    .filter = NULL, .layout = "p2p", .tag = "load", .port = 1883, .version = 4, .publishers = 1, .subscribers = 1,
    .qos = 0, .size = 16, .size_max = 0, .messages = 0, .window = 100, .burst = 0, .rate = 0, .parallel = 32, .ahead = 100000,
    .pid = 0,
    .ca = "", .cert = "", .key = "", .store = 1,
    .connections = 1000, .keepalive = 300, .subscribe = 0, .users = 0, .seconds = 0, .warmup = 0, .idle = 2, .drain = 20,
};

static const struct { const char *name; const char **text; long *number; double *real; } names[] = {
    {"host", &opt.host, 0, 0},               /* IPv4 address */
    {"port", 0, &opt.port, 0},
    {"user", &opt.user, 0, 0},               /* user name of clients; %d becomes the client's number */
    {"password", &opt.password, 0, 0},
    {"users", 0, &opt.users, 0},             /* after this many user names they begin again; 0: never */
    {"sub_user", &opt.sub_user, 0, 0},       /* the same for subscribers; left out: as for publishers */
    {"sub_password", &opt.sub_password, 0, 0},
    {"topic", &opt.topic, 0, 0},             /* %d becomes the publisher's number */
    {"filter", &opt.filter, 0, 0},           /* topic filter of subscribers; left out: the publisher's topic */
    {"layout", &opt.layout, 0, 0},           /* p2p: subscriber i hears publisher i mod P; all: each hears every one;
                                                share: each message goes to one of them */
    {"tag", &opt.tag, 0, 0},                 /* what client identifiers begin with */
    {"version", 0, &opt.version, 0},         /* 4: MQTT 3.1.1; 5 */
    {"publishers", 0, &opt.publishers, 0},
    {"subscribers", 0, &opt.subscribers, 0},
    {"qos", 0, &opt.qos, 0},
    {"size", 0, &opt.size, 0},               /* bytes of payload, 16 at least */
    {"size_max", 0, &opt.size_max, 0},       /* sizes vary from size to this; 0: all alike */
    {"messages", 0, &opt.messages, 0},       /* by each publisher; 0: until `seconds` are over */
    {"window", 0, &opt.window, 0},           /* QoS 1 and 2: unacknowledged messages of a publisher */
    {"burst", 0, &opt.burst, 0},             /* messages in one send; 0: as many as fit into 64 KiB */
    {"rate", 0, &opt.rate, 0},               /* messages a second of all publishers; 0: as many as possible */
    {"ahead", 0, &opt.ahead, 0},             /* without a rate: deliveries that publishers may be ahead of subscribers, so
                                                that socket buffers do not fill with minutes of work; 0: no limit */
    {"parallel", 0, &opt.parallel, 0},       /* handshakes under way at once */
    {"pid", 0, &opt.pid, 0},                 /* the broker's process, to read its CPU time and memory */
    {"connections", 0, &opt.connections, 0}, /* idle: how many; connect: how many at most, 0: until the time is over */
    {"keepalive", 0, &opt.keepalive, 0},
    {"subscribe", 0, &opt.subscribe, 0},     /* idle: 1 subscribes each connection to its topic */
    {"persistent", 0, &opt.persistent, 0},   /* pubsub: 1 gives subscribers sessions that outlive their connection */
    {"store", 0, &opt.store, 0},             /* retained: 0 only fetches what an earlier run has stored */
    {"tls", 0, &opt.tls, 0},                 /* 1: TLS, with a whole handshake for each connection */
    {"websocket", 0, &opt.websocket, 0},     /* 1: MQTT in WebSocket frames, path /mqtt */
    {"ca", &opt.ca, 0, 0},                   /* tls: what the broker's certificate is checked with */
    {"cert", &opt.cert, 0, 0},               /* tls: client certificate; %d becomes the user's number */
    {"key", &opt.key, 0, 0},
    {"seconds", 0, 0, &opt.seconds},         /* how long to publish (after the warm-up) */
    {"warmup", 0, 0, &opt.warmup},           /* seconds of publishing that are not counted in rate and latency */
    {"idle", 0, 0, &opt.idle},               /* seconds without a delivery after which the rest counts as lost */
    {"drain", 0, 0, &opt.drain},             /* seconds after the last publish after which the rest counts as lost */
};

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void give_up(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

double percentile_us(const struct histogram *h, double share) {
    uint64_t rank = (uint64_t)((double)h->count * share), seen = 0;
    if (!h->count) return 0;
    for (unsigned i = 0; i < 64 * 64; i++) {
        seen += h->steps[i];
        if (seen > rank) {
            unsigned octave = i / 64;
            double ns = octave ? ((double)(i % 64) + 64.5) * (double)(1ull << (octave - 1)) : (double)i;
            return (ns < (double)h->max ? ns : (double)h->max) / 1e3;
        }
    }
    return (double)h->max / 1e3;
}

void print_histogram(const char *name, const struct histogram *h) {
    printf(
        "\"%s\": {\"p50\": %.1f, \"p95\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f}, ", name,
        percentile_us(h, 0.5), percentile_us(h, 0.95), percentile_us(h, 0.99), percentile_us(h, 0.999),
        (double)h->max / 1e3
    );
}

double cpu_seconds(long pid) {
    clockid_t clock = CLOCK_PROCESS_CPUTIME_ID;
    struct timespec t;
    if ((pid && clock_getcpuclockid((pid_t)pid, &clock)) || clock_gettime(clock, &t))
        give_up("cannot read the CPU time of process %ld", pid);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

long memory_kib(long pid, const char *field) {
    char path[64], line[256];
    long value = 0;
    snprintf(path, sizeof path, "/proc/%ld/status", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, field, strlen(field)) && line[strlen(field)] == ':') value = atol(line + strlen(field) + 1);
    fclose(file);
    return value;
}

void print_cost(double broker_cpu, double self_cpu, double seconds, uint64_t messages) {
    if (opt.pid) {
        printf(
            "\"broker_cpu_s\": %.4f, \"broker_cpu_share\": %.3f, \"cpu_us_per_message\": %.4f, \"rss_kib\": %ld, "
            "\"peak_rss_kib\": %ld, ",
            broker_cpu, broker_cpu / seconds, messages ? broker_cpu * 1e6 / (double)messages : 0.0,
            memory_kib(opt.pid, "VmRSS"), memory_kib(opt.pid, "VmHWM")
        );
    }
    printf("\"self_cpu_share\": %.3f}\n", self_cpu / seconds);
}

void fill_template(char *out, size_t room, const char *pattern, long index) {
    const char *mark = strstr(pattern, "%d");
    int n = mark ? snprintf(out, room, "%.*s%ld%s", (int)(mark - pattern), pattern, index, mark + 2)
                 : snprintf(out, room, "%s", pattern);
    if (n < 0 || (size_t)n >= room) give_up("%s is too long", pattern);
}

int open_socket(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    if (inet_pton(AF_INET, opt.host, &address.sin_addr) != 1) give_up("host=%s is not an IPv4 address", opt.host);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) give_up("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* A closed connection keeps its port for a while, and looking for a free one gets slow long before there is none; over
       loopback there are more addresses to come from. */
    static unsigned opened;
    if (!strncmp(opt.host, "127.", 4)) {
        struct sockaddr_in source = {.sin_family = AF_INET};
        unsigned run = (unsigned)getpid() % 250 + 1, part = opened++ / 8000 % 250 + 1;
        source.sin_addr.s_addr = htonl(127u << 24 | run << 8 | part);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&source, sizeof source)) give_up("bind: %s", strerror(errno));
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        give_up("connect to %s:%ld: %s", opt.host, opt.port, strerror(errno));
    return fd;
}

static void set_option(const char *word) {
    const char *value = strchr(word, '=');
    for (size_t i = 0; value && i < sizeof names / sizeof *names; i++) {
        if (strlen(names[i].name) != (size_t)(value - word) || strncmp(word, names[i].name, (size_t)(value - word)))
            continue;
        char *end = "";
        if (names[i].text) *names[i].text = value + 1;
        if (names[i].number) *names[i].number = strtol(value + 1, &end, 10);
        if (names[i].real) *names[i].real = strtod(value + 1, &end);
        if (*end) give_up("%s is not a number", word);
        return;
    }
    give_up("%s: no such option", word);
}

int main(int argc, char **argv) {
    static const struct { const char *name; int (*run)(void); } scenarios[] = {
        {"pubsub", run_pubsub}, {"offline", run_offline}, {"connect", run_connect}, {"idle", run_idle},
        {"reflect", run_reflect}, {"storm", run_storm}, {"sessions", run_sessions}, {"subscriptions", run_subscriptions},
        {"retained", run_retained},
    };
    for (int i = 2; i < argc; i++) set_option(argv[i]);
    if (!opt.sub_user) opt.sub_user = opt.user;
    if (!opt.sub_password) opt.sub_password = opt.password;
    if (!opt.filter) opt.filter = opt.topic;
    if (opt.size < 16) give_up("size=%ld: a payload has at least 16 bytes", opt.size);
    if (opt.size_max < opt.size) opt.size_max = opt.size;
    if (opt.size_max > 32 << 10) give_up("size_max=%ld: at most 32 KiB", opt.size_max);
    if (opt.window < 1 || opt.window > 16000) give_up("window=%ld is not from 1 to 16000", opt.window);
    if (opt.version != 4 && opt.version != 5) give_up("version=%ld is neither 4 nor 5", opt.version);
    if (opt.qos < 0 || opt.qos > 2) give_up("qos=%ld is not 0, 1 or 2", opt.qos);
    if (opt.parallel < 1) give_up("parallel=%ld is not positive", opt.parallel);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; argc > 1 && i < sizeof scenarios / sizeof *scenarios; i++)
        if (!strcmp(argv[1], scenarios[i].name)) return scenarios[i].run();
    give_up("usage: load SCENARIO name=value ...; the scenarios are listed in main.c");
}
