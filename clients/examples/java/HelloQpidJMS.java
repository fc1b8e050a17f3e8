import jakarta.jms.BytesMessage;
import jakarta.jms.Destination;
import jakarta.jms.JMSConsumer;
import jakarta.jms.JMSContext;
import jakarta.jms.JMSException;
import jakarta.jms.JMSRuntimeException;
import jakarta.jms.Message;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.net.URI;
import java.util.HashMap;
import java.util.Map;
import java.util.zip.ZipInputStream;
import org.apache.qpid.jms.JmsConnectionFactory;

/**
 * Hello Grid over AMQP 1.0, with Qpid JMS: java -cp 'jars/*' HelloQpidJMS.java [URL [QUEUE [CMD [ARGUMENTS]]]]
 *
 * <p>On brokers that do not make up reply queues (RabbitMQ), REPLY_QUEUE in the environment names one.
 */
public class HelloQpidJMS {
    private static final String DEFAULT_URL = System.getenv().getOrDefault("CAROD_BROKER", "amqp://localhost:5672");

    public static void main(String[] args) throws Exception {
        String queue = args.length > 1 ? args[1] : "grid";
        try (JMSContext context = connect(args.length > 0 ? args[0] : DEFAULT_URL)) {
            String named = System.getenv("REPLY_QUEUE");
            Destination replies = named == null ? context.createTemporaryQueue() : context.createQueue(named);
            JMSConsumer consumer = context.createConsumer(replies);
            // A broker that vanishes would leave receive() waiting.
            context.setExceptionListener(lost -> fail("connection lost: " + lost.getMessage()));
            Message job = context.createBytesMessage(); // with no body at all, RabbitMQ ends the session
            job.setStringProperty("Cmd", args.length > 2 ? args[2] : "/bin/echo");
            job.setStringProperty("Arguments", args.length > 3 ? args[3] : "Hello Grid");
            job.setJMSReplyTo(replies);
            submit(context, queue, job);
            while (!isLast(consumer.receive())) {}
        } catch (JMSRuntimeException lost) {
            fail("no connection: " + lost.getMessage());
        } catch (IOException failed) {
            fail(failed.getMessage());
        }
    }

    private static JMSContext connect(String url) {
        String[] user = String.valueOf(URI.create(url).getRawUserInfo()).split(":", 2);
        var factory = new JmsConnectionFactory(url.replaceFirst("//.*@", "//"));
        return user.length == 2 ? factory.createContext(user[0], user[1]) : factory.createContext();
    }

    private static void submit(JMSContext context, String queue, Message job) throws IOException {
        try {
            context.createProducer().send(context.createQueue(queue), job);
        } catch (JMSRuntimeException refused) {
            throw new IOException("no queue '" + queue + "' on the broker: is a node running? " + refused.getMessage());
        }
    }

    /** Shows what a reply says. Throws if the job failed. */
    private static boolean isLast(Message reply) throws JMSException, IOException {
        var said = new StringBuilder();
        for (String name : new String[] {"JobStatus", "JobState", "ExitCode"}) {
            if (reply.propertyExists(name)) {
                said.append(name).append('=').append(reply.getObjectProperty(name)).append(' ');
            }
        }
        System.out.println(said.toString().strip());
        byte[] body = reply instanceof BytesMessage ? reply.getBody(byte[].class) : new byte[0];
        String text = new String(body == null ? new byte[0] : body);
        if (text.startsWith("ERROR:")) {
            throw new IOException(text);
        }
        switch ((int) reply.getLongProperty("JobStatus")) {
            case 3:
                throw new IOException("the job was removed: " + reply.getStringProperty("RemoveReason"));
            case 5:
                throw new IOException("the job is held: " + reply.getStringProperty("HoldReason"));
            case 4:
                var files = unzip(body);
                System.out.print(files.get("_condor_stdout"));
                if (!"0".equals(reply.getStringProperty("ExitCode"))) { // there is none if a signal ended it
                    String reason = reply.getStringProperty("ExitReason");
                    throw new IOException(files.get("_condor_stderr") + "ExitReason=" + reason);
                }
                return true;
            default:
                return false;
        }
    }

    private static Map<String, String> unzip(byte[] archive) throws IOException {
        var files = new HashMap<String, String>();
        try (var zip = new ZipInputStream(new ByteArrayInputStream(archive))) {
            for (var entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                files.put(entry.getName(), new String(zip.readAllBytes()));
            }
        }
        return files;
    }

    private static void fail(String why) {
        System.err.println(why);
        System.exit(1);
    }
}
