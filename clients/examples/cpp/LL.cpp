// Hello Grid over AMQP 1.0, with Qpid Proton: LL [URL [QUEUE [CMD [ARGUMENTS]]]]
// On brokers that do not make up reply queues (RabbitMQ), REPLY_QUEUE in the environment names one.
//
//     g++ -std=c++17 -o LL LL.cpp -lqpid-proton-cpp -lzip

#include <proton/connection.hpp>
#include <proton/connection_options.hpp>
#include <proton/container.hpp>
#include <proton/delivery.hpp>
#include <proton/error_condition.hpp>
#include <proton/message.hpp>
#include <proton/message_id.hpp>
#include <proton/messaging_handler.hpp>
#include <proton/receiver_options.hpp>
#include <proton/sender.hpp>
#include <proton/source.hpp>
#include <proton/source_options.hpp>
#include <proton/tracker.hpp>
#include <proton/transport.hpp>
#include <proton/uuid.hpp>
#include <zip.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

/// The content of one file of a zip archive.
std::string unzip(const proton::binary& archive, const char* name) {
    // zip_open_from_source makes the source the archive's.
    zip_source_t* source = zip_source_buffer_create(archive.data(), archive.size(), 0, nullptr);
    std::unique_ptr<zip_t, decltype(&zip_discard)> zip(zip_open_from_source(source, ZIP_RDONLY, nullptr), zip_discard);
    zip_stat_t stat;
    if (!zip || zip_stat(zip.get(), name, 0, &stat) != 0)
        throw std::runtime_error(std::string("no ") + name + " in the results");
    std::unique_ptr<zip_file_t, decltype(&zip_fclose)> file(zip_fopen(zip.get(), name, 0), zip_fclose);
    std::string content(stat.size, '\0');
    content.resize(std::max<zip_int64_t>(0, zip_fread(file.get(), content.data(), content.size())));
    return content;
}

class HelloGrid : public proton::messaging_handler {
public:
    HelloGrid(std::string url, std::string queue, std::string cmd, std::string arguments)
        : url_(std::move(url)), queue_(std::move(queue)) {
        job_.id(proton::uuid::random());
        job_.properties().put("Cmd", cmd);
        job_.properties().put("Arguments", arguments);
        job_.properties().put("Out", "job.out");
        job_.properties().put("Err", "job.err");
        job_.properties().put("Requirements", "TRUE");
        job_.body(proton::binary()); // RabbitMQ ends the session of a client that sends none
    }

    /// Empty if the job completed with exit code 0.
    std::string failure() const { return failure_; }

    void on_container_start(proton::container& container) override {
        // PLAIN too, without TLS.
        container.connect(url_, proton::connection_options().sasl_allow_insecure_mechs(true));
    }

    void on_connection_open(proton::connection& connection) override {
        const char* named = std::getenv("REPLY_QUEUE");
        auto source = proton::source_options().dynamic(!named);
        connection.open_receiver(named ? named : "", proton::receiver_options().source(source));
    }

    void on_receiver_open(proton::receiver& replies) override {
        job_.reply_to(replies.source().address());
        replies.connection().open_sender(queue_);
    }

    void on_sendable(proton::sender& sender) override {
        if (sent_) return;
        sender.send(job_);
        sent_ = true;
    }

    void on_message(proton::delivery& delivery, proton::message& reply) override {
        auto& ad = reply.properties();
        const char* separator = "";
        for (const char* name : {"JobStatus", "JobState", "ExitCode"})
            if (ad.exists(name)) {
                std::cout << separator << name << '=' << ad.get(name);
                separator = " ";
            }
        std::cout << std::endl;
        const auto body = reply.body().empty() ? proton::binary() : proton::get<proton::binary>(reply.body());
        if (std::string(body).rfind("ERROR:", 0) == 0) return end(delivery, body);
        switch (proton::coerce<int>(ad.get("JobStatus"))) {
        case 3: return end(delivery, "the job was removed: " + to_string(ad.get("RemoveReason")));
        case 5: return end(delivery, "the job is held: " + to_string(ad.get("HoldReason")));
        case 4:
            std::cout << unzip(body, "job.out") << std::flush;
            // A job that a signal ended has no ExitCode.
            if (ad.exists("ExitCode") && proton::coerce<int>(ad.get("ExitCode")) == 0) return end(delivery, "");
            return end(delivery, unzip(body, "job.err") + "ExitReason=" + to_string(ad.get("ExitReason")));
        }
    }

    void on_tracker_reject(proton::tracker& tracker) override {
        end(tracker, "queue '" + queue_ + "' did not take the job: is a node running?");
    }

    void on_tracker_release(proton::tracker& tracker) override { on_tracker_reject(tracker); }

    void on_sender_error(proton::sender& sender) override {
        end(sender, "no queue '" + queue_ + "' on the broker: is a node running? " + sender.error().what());
    }

    void on_transport_error(proton::transport& transport) override {
        failure_ = "no connection: " + transport.error().what();
    }

    void on_error(const proton::error_condition& error) override { throw std::runtime_error(error.what()); }

private:
    template <class Endpoint> void end(Endpoint& endpoint, const std::string& failure) {
        failure_ = failure;
        endpoint.connection().close();
    }

    std::string url_, queue_, failure_;
    proton::message job_;
    bool sent_ = false;
};

}  // namespace

int main(int argc, char** argv) {
    const char* url = std::getenv("CAROD_BROKER");
    HelloGrid hello(argc > 1 ? argv[1] : url ? url : "amqp://localhost:5672", argc > 2 ? argv[2] : "grid",
                    argc > 3 ? argv[3] : "/bin/echo", argc > 4 ? argv[4] : "Hello Grid");
    try {
        proton::container(hello).run();
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
    if (!hello.failure().empty()) std::cerr << hello.failure() << std::endl;
    return hello.failure().empty() ? 0 : 1;
}
